# Run a command where nothing but /tmp can be written, with no capability and, where Python can be reached without them, as a user
# without rights: bash tests/deploy/read_only.sh COMMAND …, inside `unshare --mount`.
set -euo pipefail
mount --make-rprivate /
mount -t tmpfs -o mode=1777,size=1g tmpfs /tmp
findmnt --raw --noheadings --output TARGET | grep -vE '^/(proc|sys|dev|tmp)(/|$)' | sort -r | while read -r at; do
    mount -o remount,bind,ro "$at"
done
nobody=(--reuid=10001 --regid=10001 --clear-groups)
setpriv "${nobody[@]}" "$1" -c '' 2>/dev/null || nobody=()
exec setpriv "${nobody[@]}" --no-new-privs --inh-caps=-all --bounding-set=-all "$@"
