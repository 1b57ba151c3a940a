#!/bin/sh
# Replace every gateway by one of today's image and settings, without a failed request.
set -eu

compose() { docker compose -f docker-compose.yml -f deploy/rolling/compose.yml "$@"; }
gateways() { compose ps --quiet gateway; }

cd "$(dirname "$0")/../.."
old=$(gateways)
count=$(echo "$old" | wc -l)

if ! compose up --detach --no-deps --no-recreate --wait --scale gateway=$((2 * count)) gateway; then
    gateways | grep -vF "$old" | xargs --no-run-if-empty docker rm --force
    echo "The new gateways did not become healthy and are gone; the old ones serve on." >&2
    exit 1
fi
# The proxy asks for addresses each second and probes each half.
sleep 3
# Each answers what it has taken in.
docker stop $old
docker rm --volumes $old
