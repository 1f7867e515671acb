"""Modules that are imported by name or when they are needed, the bundled checkpoint, and MLX with its kernels."""

from PyInstaller.utils.hooks import collect_all, collect_data_files, collect_submodules, copy_metadata

hiddenimports = collect_submodules("pg_mlx", filter=lambda name: not name.startswith("pg_mlx.pyinstaller"))
datas = collect_data_files("pg_mlx") + copy_metadata("pg_mlx")
mlx_datas, binaries, mlx_imports = collect_all("mlx")
datas += mlx_datas
hiddenimports += mlx_imports
# Only asked for by options of `pg-mlx train` and `pg-mlx batch`, and many times as large as all the rest.
excludedimports = ["mlx_lm", "ray"]
