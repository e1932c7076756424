//! What lies between: the brokers, the topics of this migration that are there already, and the schema registry.

use std::collections::BTreeMap;

use changelog::{Lane, Topics};
use service::registry::RegistryClient;
use service::{Config, Hint};

use crate::Error;
use crate::finding::Findings;
use crate::topics::Kafka;

/// # Errors
/// When no broker answers.
pub async fn brokers(config: &Config, findings: &mut Findings) -> Result<(), Error> {
    let kafka = Kafka::new(&config.kafka);
    let cluster = kafka.cluster().await?;
    let (count, factor) = (cluster.brokers.len(), usize::from(config.kafka.replication_factor));
    if factor > count {
        findings.blocker(
            "replication_factor",
            format!("[kafka] replication_factor is {factor}, and Kafka has {count} broker(s)"),
            format!("set replication_factor = {count} or add brokers"),
        );
    } else if factor == 1 && count > 1 {
        findings.warning(
            "replication_factor",
            "[kafka] replication_factor is 1: the loss of one broker's disk ends the migration",
            "set replication_factor = 3 before dflux prepare",
        );
    }
    if let Some(broker) = cluster.brokers.first() {
        let settings = kafka.broker_settings(*broker).await?;
        let most = settings.get("message.max.bytes").and_then(|value| value.parse::<u64>().ok());
        let version = settings.get("inter.broker.protocol.version").map_or("", String::as_str);
        let most = most.map_or("unknown".into(), |most| most.to_string());
        let version = if version.is_empty() { String::new() } else { format!(", protocol {version}") };
        findings.note(
            "kafka",
            format!(
                "{count} broker(s){version}, message.max.bytes {most}; the topics of dflux are made with max.message.bytes {} \
                 ([kafka] record_bytes_max): a larger row goes in several records",
                config.kafka.record_bytes_max
            ),
            "",
        );
    }
    let topics = Topics::new(&config.migration.name, Lane::Forward);
    for topic in cluster.topics.keys().filter(|topic| topics.owns(topic)) {
        let settings = kafka.topic_settings(topic).await?;
        topic_settings(topic, *topic == topics.ledger(), &settings, findings);
    }
    Ok(())
}

/// Whether a topic keeps what it must keep. Pure.
pub fn topic_settings(topic: &str, ledger: bool, settings: &BTreeMap<String, String>, findings: &mut Findings) {
    let is = |name: &str, value: &str| settings.get(name).is_none_or(|held| held == value);
    let policy = if ledger { "compact" } else { "delete" };
    let wanted = [("cleanup.policy", policy), ("retention.ms", "-1"), ("retention.bytes", "-1")];
    let wrong: Vec<&(&str, &str)> = wanted
        .iter()
        // A compacted topic removes nothing by age or size.
        .filter(|(name, _)| !ledger || *name == "cleanup.policy")
        .filter(|(name, value)| !is(name, value))
        .collect();
    if wrong.is_empty() {
        return;
    }
    let held = wrong.iter().map(|(name, _)| format!("{name} = {}", settings.get(*name).map_or("", String::as_str)));
    let wanted = wrong.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(",");
    findings.blocker(
        "topic_retention",
        format!("topic {topic} may lose records before they are applied: {}", held.collect::<Vec<_>>().join(", ")),
        format!("kafka-configs.sh --alter --entity-type topics --entity-name {topic} --add-config {wanted}"),
    );
}

pub async fn registry(config: &Config, findings: &mut Findings) {
    if let Err(error) = RegistryClient::new(&config.registry.url).ping().await {
        findings.failed("registry", &error, error.hint());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_that_forgets_is_a_blocker_and_a_compacted_ledger_is_not() {
        let settings = |pairs: &[(&str, &str)]| pairs.iter().map(|(a, b)| ((*a).into(), (*b).into())).collect();
        let check = |ledger, pairs: &[(&str, &str)]| {
            let mut findings = Findings::default();
            topic_settings("t", ledger, &settings(pairs), &mut findings);
            findings.sorted()
        };
        let good = [("cleanup.policy", "delete"), ("retention.ms", "-1"), ("retention.bytes", "-1")];
        assert!(check(false, &good).is_empty());
        assert!(check(true, &[("cleanup.policy", "compact"), ("retention.ms", "604800000")]).is_empty());
        let found = check(false, &[("cleanup.policy", "delete"), ("retention.ms", "1000"), ("retention.bytes", "-1")]);
        assert!(found[0].text.contains("retention.ms = 1000"), "{found:?}");
        assert!(found[0].remedy.ends_with("--add-config retention.ms=-1"), "{found:?}");
        assert_eq!(check(true, &[("cleanup.policy", "delete")]).len(), 1);
    }
}
