#!/bin/sh
# Sets up ./.venv with the package and its native module, for `make run` and `make test`.
#
#   tools/setup.sh run    what the store needs
#   tools/setup.sh test   that, and what its tests need
#
# Does nothing, without network, when nothing changed since the last time. What the machine lacks
# (a compiler, cargo, venv) is installed when run as root on Debian or a kin of it; otherwise the
# one line to run is printed and the script ends with 1.
set -eu
cd "$(dirname "$0")/.."
what=${1:-run}
venv=.venv
stamp=$venv/.setup-$what

say() { printf '%s\n' "$*" >&2; }

digest() { # of everything that the native module and the set of packages are made from
  find native/src native/Cargo.toml native/Cargo.lock pyproject.toml tools/setup.sh requirements*.txt \
    -type f 2>/dev/null | LC_ALL=C sort | xargs cat | cksum
}

now=$(digest)
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$now" ] && [ -x "$venv/bin/o3storage" ]; then
  exit 0
fi

rust_version=$(sed -n 's/^rust-version *= *"\(.*\)"/\1/p' native/Cargo.toml)

new_enough() { # $1 has at least version $2, both major.minor
  [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]
}

find_cargo() {
  for candidate in "$(command -v cargo || true)" "$HOME/.cargo/bin/cargo" /usr/bin/cargo; do
    [ -n "$candidate" ] && [ -x "$candidate" ] || continue
    version=$("$candidate" --version 2>/dev/null | sed -n 's/^cargo \([0-9]*\.[0-9]*\).*/\1/p')
    [ -n "$version" ] && new_enough "$version" "$rust_version" && { dirname "$candidate"; return 0; }
  done
  return 1
}

# The system's own Python first: distributions build theirs with profile-guided optimisation, and one
# built by hand without it took 8 % (GET) to 20 % (LIST) more CPU for a request.
find_python() {
  for candidate in /usr/bin/python3 python3 python3.13 python3.12 python3.11; do
    command -v "$candidate" >/dev/null 2>&1 || continue
    "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' \
      2>/dev/null && { command -v "$candidate"; return 0; }
  done
  return 1
}

missing() {
  packages=""
  find_python >/dev/null || packages="$packages python3 python3-venv"
  find_cargo >/dev/null || packages="$packages rustc-web cargo-web"
  command -v cc >/dev/null 2>&1 || packages="$packages gcc"
  [ -e /usr/include/stdio.h ] || packages="$packages libc6-dev"
  printf '%s' "$packages"
}

lacking=$(missing)
if [ -n "$lacking" ]; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    say "o3storage: installing$lacking (Debian packages)"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -q >&2
    # shellcheck disable=SC2086
    apt-get install -q -y --no-install-recommends $lacking >&2
  else
    say "o3storage needs packages that this machine lacks. Run this once, then try again:"
    say "  sudo apt-get install -y --no-install-recommends$lacking"
    say "(cargo $rust_version or newer from elsewhere, found on PATH, does as well)"
    exit 1
  fi
  lacking=$(missing)
  [ -z "$lacking" ] || { say "o3storage: still missing after the installation:$lacking"; exit 1; }
fi

PATH="$(find_cargo):$PATH"
export PATH
[ -x "$venv/bin/python" ] && "$venv/bin/python" -c '' 2>/dev/null || {
  say "o3storage: making $venv"
  rm -rf "$venv"
  "$(find_python)" -m venv "$venv"
}
pip="$venv/bin/python -m pip install -q --disable-pip-version-check"
say "o3storage: fetching the build tool and the Rust crates, building the native module (about a minute)"
$pip -r requirements-build.txt
if [ "$what" = test ]; then
  $pip -r requirements-test.txt
fi
"$venv/bin/python" -m maturin develop -q --release --locked >&2
printf '%s' "$now" >"$stamp"
[ "$what" = test ] && printf '%s' "$now" >"$venv/.setup-run"
exit 0
