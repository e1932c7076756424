//! librdkafka's configuration: the user's properties, under those that exactness rests on.

use rdkafka::ClientConfig;
use rdkafka::config::FromClientConfig;

use crate::{Error, config};

/// Properties that a user may not set: each one would lose, double or reorder events, or is decided per client.
const RESERVED: [&str; 22] = [
    "bootstrap.servers",
    "metadata.broker.list",
    "acks",
    "request.required.acks",
    "enable.idempotence",
    "enable.gapless.guarantee",
    "message.timeout.ms",
    "delivery.timeout.ms",
    "retries",
    "message.send.max.retries",
    "max.in.flight",
    "max.in.flight.requests.per.connection",
    "transactional.id",
    "queuing.strategy",
    "partitioner",
    "group.id",
    "enable.auto.commit",
    "enable.auto.offset.store",
    "auto.offset.reset",
    "isolation.level",
    "enable.partition.eof",
    "allow.auto.create.topics",
];

/// A client's configuration with the user's properties first and `ours` over them.
///
/// # Errors
/// `KafkaProperty` if the user set one that is reserved.
pub fn client_config(kafka: &config::Kafka, client_id: &str, ours: &[(&str, String)]) -> Result<ClientConfig, Error> {
    let mut config = ClientConfig::new();
    for (name, value) in &kafka.properties {
        if RESERVED.contains(&name.as_str()) {
            return Err(Error::KafkaProperty { name: name.clone() });
        }
        config.set(name, value);
    }
    config.set("bootstrap.servers", &kafka.brokers).set("client.id", client_id);
    for (name, value) in ours {
        config.set(*name, value);
    }
    Ok(config)
}

/// Makes a client of any kind; an unknown or malformed property is named.
///
/// # Errors
/// `Kafka`.
pub fn create<T: FromClientConfig>(kafka: &config::Kafka, config: &ClientConfig) -> Result<T, Error> {
    config.create().map_err(|error| failed(kafka, error))
}

/// An error of librdkafka with the brokers it concerns.
pub fn failed(kafka: &config::Kafka, error: impl std::fmt::Display) -> Error {
    Error::Kafka { brokers: kafka.brokers.clone(), message: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_property_that_exactness_rests_on_cannot_be_overridden() {
        let mut kafka = config::Kafka {
            brokers: "b:1".into(),
            properties: Default::default(),
            replication_factor: 1,
            record_bytes_max: 1 << 20,
        };
        kafka.properties.insert("compression.type".into(), "zstd".into());
        let config = client_config(&kafka, "test", &[("acks", "all".into())]).unwrap();
        assert_eq!(config.get("compression.type"), Some("zstd"));
        kafka.properties.insert("acks".into(), "1".into());
        assert!(matches!(client_config(&kafka, "test", &[]), Err(Error::KafkaProperty { name }) if name == "acks"));
    }
}
