#!/bin/sh
# Run once by the image of PostgreSQL when it makes the source: something to migrate.
exec pgbench --initialize --scale=20 --quiet --username="$POSTGRES_USER" "$POSTGRES_DB"
