"""Shows what the boot configuration became, without the values of secrets."""

import os
import stat
import sys

print("arguments", sys.argv[1:])
print("variable", os.environ["GREETING"])
info = os.stat("/etc/secret.key")
print("mode", oct(stat.S_IMODE(info.st_mode)), "size", info.st_size)
with open("/etc/secret.key", "rb") as file:
    print("sum", sum(file.read()))
for path in ("/etc/secret.key", "/usr/bin/python3", "/usr/lib/new"):
    try:
        open(path, "wb").close()
        print("written", path)
    except OSError as error:
        print("refused", path, error.errno)
