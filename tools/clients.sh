#!/bin/sh
# Installs the S3 clients that the client suite drives: rclone, s3cmd and aws from Debian, and
# @aws-sdk/client-s3. (boto3 and another aws are among requirements-test.txt.)
set -eu
cd "$(dirname "$0")/.."
lacking=""
for tool in rclone s3cmd curl openssl strace; do
  command -v "$tool" >/dev/null 2>&1 || lacking="$lacking $tool"
done
[ -x /usr/bin/aws ] || lacking="$lacking awscli"
command -v node >/dev/null 2>&1 || lacking="$lacking nodejs npm"
if [ -n "$lacking" ]; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -q >&2
    # shellcheck disable=SC2086
    apt-get install -q -y --no-install-recommends $lacking >&2
  else
    printf 'The client suite needs:\n  sudo apt-get install -y --no-install-recommends%s\n' "$lacking" >&2
    exit 1
  fi
fi
cd tests/clients/javascript
[ -d node_modules/@aws-sdk/client-s3 ] && [ -d node_modules/@aws-sdk/lib-storage ] ||
  npm install --no-package-lock --no-audit --no-fund --loglevel=error
