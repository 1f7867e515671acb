"""python -m benchmarks.side_by_side"""

from benchmarks.side_by_side.run import main

main()
