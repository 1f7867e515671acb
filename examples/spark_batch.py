"""Captions with Spark: a table with a column `path` or `bytes` in, its rows with answers out.

spark-submit examples/spark_batch.py IN OUT
"""

import sys
from collections.abc import Iterator
from functools import cache

import pandas as pd

from pg_mlx.batch import Predictor

SCHEMA = "id string, text string, regions string, error string"


@cache
def predictor() -> Predictor:
    """One a process, since the model is loaded once."""
    return Predictor(prompt="caption en", keep=["id"])


def captions(frames: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
    """For mapInPandas: one row out for each row in."""
    for frame in frames:
        yield pd.DataFrame(predictor()(frame))[["id", "text", "regions", "error"]]


if __name__ == "__main__":
    from pyspark.sql import SparkSession

    spark = SparkSession.builder.getOrCreate()
    spark.read.parquet(sys.argv[1]).mapInPandas(captions, SCHEMA).write.parquet(sys.argv[2])
