# One image with the four programs: producer, consumer, validator and dflux.
FROM rust:1.95-trixie AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends cmake g++ libssl-dev pkg-config zlib1g-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /dflux
COPY . .
RUN cargo build --release --locked -p producer -p consumer -p validator -p control

FROM debian:trixie-slim
# pg_dump and pg_restore must be at least as new as the source: dflux prepare runs them.
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates libssl3t64 postgresql-client-17 zlib1g \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --no-create-home dflux
COPY --from=build /dflux/target/release/producer /dflux/target/release/consumer /dflux/target/release/validator \
    /dflux/target/release/dflux /usr/local/bin/
USER dflux
WORKDIR /etc/dflux
EXPOSE 9401 9402 9403
CMD ["dflux", "--help"]
