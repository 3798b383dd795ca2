"""Folders of chunks behind URLs: byte ranges instead of files, and a bounded cache on the disk.

`folder` asks with retries and time limits, through a `source`: `http_source` or `fsspec_source`. `partial_copy` and `index`
find where the frames are without fetching them, `ready_index` takes an index that lies beside the chunks. `byte_cache` keeps
what was read, and `scenes` is what the data set sees.
"""
