"""A worker process that reads its video again and again and says nothing."""

from pathlib import Path

from dgl_runtime.decoding.decode_worker import main


def look_into(line, job):
    while True:
        Path(job["path"]).read_bytes()


if __name__ == "__main__":
    main(look_into)
