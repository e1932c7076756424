//! The lane's topics: made by us with unlimited retention, checked at every start. I/O, thin.
//!
//! Kafka's default retention would delete events before anybody has applied them, and compaction would delete all but the
//! last of each key: both are silent losses, so both are errors.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use changelog::piece;
use rdkafka::admin::{AdminClient, AdminOptions, ConfigResource, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::types::RDKafkaErrorCode;
use service::config;
use service::retry::Backoff;

use crate::error::Error;

const ASKED_WITHIN: Duration = Duration::from_secs(15);
/// Topics described or created by one request.
const REQUEST_TOPICS: usize = 200;
/// About a minute: a broker that has just made a thousand topics is slow to know the next one.
const DESCRIBE_ATTEMPTS: u32 = 120;

/// A topic as it must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub name: String,
    /// `None`: whatever it was made with; `made_with` counts only when it is made now.
    pub partitions: Option<usize>,
    pub made_with: usize,
    pub compacted: bool,
}

impl Wanted {
    /// A topic of one partition, such as the transactions.
    pub fn single(name: String) -> Wanted {
        Wanted { name, partitions: Some(1), made_with: 1, compacted: false }
    }

    pub fn compacted(self) -> Wanted {
        Wanted { compacted: true, ..self }
    }

    /// Pinned to this number.
    pub fn of(name: String, partitions: usize) -> Wanted {
        Wanted { name, partitions: Some(partitions), made_with: partitions, compacted: false }
    }

    /// Made with this number, and any other accepted.
    pub fn about(name: String, partitions: usize) -> Wanted {
        Wanted { name, partitions: None, made_with: partitions, compacted: false }
    }

    fn cleanup_policy(&self) -> &'static str {
        if self.compacted { "compact" } else { "delete" }
    }
}

/// A topic as it was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Made {
    pub partitions: usize,
    /// Of a record's key and value together; what its `max.message.bytes` leaves of it. Pinned: a change that is cut at another place
    /// after a restart than before it could not be put together.
    pub record_bytes_max: usize,
}

/// Makes topics and reads their settings.
pub struct TopicAdmin {
    admin: Arc<AdminClient<DefaultClientContext>>,
    kafka: config::Kafka,
}

impl TopicAdmin {
    /// # Errors
    /// A property is unknown or reserved.
    pub fn new(kafka: &config::Kafka, client_id: &str) -> Result<TopicAdmin, Error> {
        let config = service::kafka::client_config(kafka, client_id, &[])?;
        Ok(TopicAdmin { admin: Arc::new(service::kafka::create(kafka, &config)?), kafka: kafka.clone() })
    }

    /// The names of those that do not exist.
    ///
    /// # Errors
    /// Kafka does not answer.
    pub async fn missing(&self, wanted: &[Wanted]) -> Result<Vec<String>, Error> {
        let present = self.partitions(wanted).await?;
        Ok(wanted.iter().map(|topic| topic.name.clone()).filter(|name| !present.contains_key(name)).collect())
    }

    /// Makes those that are missing and checks the settings of all.
    ///
    /// # Errors
    /// `TopicConfig` or `TopicPartitions` for one that would lose events, `TopicRecordBytes`, `TopicCreate`, or Kafka does not
    /// answer.
    pub async fn ensure(&self, wanted: &[Wanted]) -> Result<HashMap<String, Made>, Error> {
        let mut present = self.partitions(wanted).await?;
        let missing: Vec<&Wanted> = wanted.iter().filter(|topic| !present.contains_key(&topic.name)).collect();
        for some in missing.chunks(REQUEST_TOPICS) {
            self.create(some).await?;
        }
        present.extend(missing.iter().map(|topic| (topic.name.clone(), topic.made_with)));
        let mut made = HashMap::new();
        for some in wanted.chunks(REQUEST_TOPICS) {
            for (topic, record_bytes_max) in some.iter().zip(self.check(some).await?) {
                let partitions = present.get(&topic.name).copied().unwrap_or(0);
                made.insert(topic.name.clone(), Made { partitions, record_bytes_max });
            }
        }
        for topic in wanted {
            let found = present.get(&topic.name).copied().unwrap_or(0);
            if let Some(expected) = topic.partitions.filter(|expected| *expected != found) {
                return Err(Error::TopicPartitions { topic: topic.name.clone(), found, expected });
            }
        }
        Ok(made)
    }

    async fn partitions(&self, wanted: &[Wanted]) -> Result<HashMap<String, usize>, Error> {
        let failed = |error| Error::from(service::kafka::failed(&self.kafka, error));
        // The call blocks while the broker does not answer; other tasks must go on meanwhile.
        let admin = self.admin.clone();
        let asked = tokio::task::spawn_blocking(move || admin.inner().fetch_metadata(None, ASKED_WITHIN)).await;
        let all = asked.map_err(|error| Error::Task { what: error.to_string() })?.map_err(failed)?;
        let names: std::collections::HashSet<&str> = wanted.iter().map(|topic| topic.name.as_str()).collect();
        let present = all.topics().iter().filter(|topic| names.contains(topic.name()) && topic.error().is_none());
        Ok(present.map(|topic| (topic.name().to_owned(), topic.partitions().len())).collect())
    }

    async fn create(&self, missing: &[&Wanted]) -> Result<(), Error> {
        let bytes_max = self.kafka.record_bytes_max.to_string();
        let replicas = i32::from(self.kafka.replication_factor);
        let new: Vec<NewTopic<'_>> = missing
            .iter()
            .map(|topic| {
                NewTopic::new(
                    &topic.name,
                    i32::try_from(topic.made_with).unwrap_or(1),
                    TopicReplication::Fixed(replicas),
                )
                .set("retention.ms", "-1")
                .set("retention.bytes", "-1")
                .set("cleanup.policy", topic.cleanup_policy())
                .set("max.message.bytes", &bytes_max)
            })
            .collect();
        let options = AdminOptions::new().operation_timeout(Some(ASKED_WITHIN)).request_timeout(Some(ASKED_WITHIN));
        let outcomes = self.admin.create_topics(&new, &options).await;
        for outcome in outcomes.map_err(|error| service::kafka::failed(&self.kafka, error))? {
            match outcome {
                Ok(topic) => tracing::info!(topic, "topic created"),
                // Another instance that starts beside us was quicker.
                Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                Err((topic, code)) => return Err(Error::TopicCreate { topic, message: code.to_string() }),
            }
        }
        Ok(())
    }

    /// Yields each topic's largest record.
    async fn check(&self, wanted: &[Wanted]) -> Result<Vec<usize>, Error> {
        let specifiers: Vec<ResourceSpecifier<'_>> =
            wanted.iter().map(|topic| ResourceSpecifier::Topic(&topic.name)).collect();
        let options = AdminOptions::new().request_timeout(Some(ASKED_WITHIN));
        let mut backoff = Backoff::new(Duration::from_millis(500));
        'asked: for attempt in 1..=DESCRIBE_ATTEMPTS {
            let answers = self.admin.describe_configs(&specifiers, &options).await;
            let answers = answers.map_err(|error| service::kafka::failed(&self.kafka, error))?;
            let mut record_bytes_max = Vec::with_capacity(wanted.len());
            for (topic, answer) in wanted.iter().zip(answers) {
                let described = answer.ok().filter(|described| described.get("cleanup.policy").is_some());
                let Some(described) = described else {
                    // A broker that has not yet heard of the new topic answers with an error or with nothing.
                    if attempt == DESCRIBE_ATTEMPTS {
                        let what = format!("topic {} cannot be described", topic.name);
                        return Err(service::kafka::failed(&self.kafka, what).into());
                    }
                    tokio::time::sleep(backoff.next_delay()).await;
                    continue 'asked;
                };
                self.check_settings(topic, &described)?;
                record_bytes_max.push(self.record_bytes_max(topic, &described)?);
            }
            return Ok(record_bytes_max);
        }
        Ok(Vec::new())
    }

    /// A topic that was made with more keeps it; with less the batches of small records would not fit.
    fn record_bytes_max(&self, topic: &Wanted, described: &ConfigResource) -> Result<usize, Error> {
        let (expected, setting) = (self.kafka.record_bytes_max, described.get("max.message.bytes"));
        let found = setting.and_then(|entry| entry.value.as_deref()?.parse().ok()).unwrap_or(expected);
        if found < expected {
            return Err(Error::TopicRecordBytes { topic: topic.name.clone(), found, expected });
        }
        Ok(piece::record_bytes_max(found.min(config::RECORD_BYTES_MOST)))
    }

    fn check_settings(&self, topic: &Wanted, described: &ConfigResource) -> Result<(), Error> {
        let rules = [("cleanup.policy", topic.cleanup_policy()), ("retention.ms", "-1"), ("retention.bytes", "-1")];
        // A compacted topic is not deleted by age.
        for (name, expected) in rules.into_iter().take(if topic.compacted { 1 } else { 3 }) {
            let found = described.get(name).and_then(|entry| entry.value.clone()).unwrap_or_default();
            if found != expected {
                let brokers = self.kafka.brokers.clone();
                return Err(Error::TopicConfig { topic: topic.name.clone(), name, found, expected, brokers });
            }
        }
        Ok(())
    }
}
