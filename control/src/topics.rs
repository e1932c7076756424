//! Kafka as the operator's command uses it: what is there, how it is set, reading the ledger, one record written, topics
//! removed. librdkafka blocks in places; those calls run beside the runtime.

use std::collections::BTreeMap;
use std::time::Duration;

use changelog::LedgerRecord;
use rdkafka::admin::{AdminClient, AdminOptions, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use service::config;
use service::kafka::{client_config, create, failed};

use crate::Error;

/// Topics removed by one request.
const REQUEST_TOPICS: usize = 200;
const ASKED_WITHIN: Duration = Duration::from_secs(10);
const LEDGER_READ_WITHIN: Duration = Duration::from_secs(60);
/// A ledger has one record a chunk; more than this is no ledger.
const LEDGER_RECORDS_MAX: usize = 10_000_000;

#[derive(Clone, Debug)]
pub struct Kafka {
    settings: config::Kafka,
}

/// What the cluster says of itself.
#[derive(Clone, Debug, Default)]
pub struct Cluster {
    pub brokers: Vec<i32>,
    /// Topic name to number of partitions.
    pub topics: BTreeMap<String, usize>,
}

impl Kafka {
    pub fn new(settings: &config::Kafka) -> Kafka {
        Kafka { settings: settings.clone() }
    }

    /// # Errors
    /// `Service` when no broker answers, or a property is refused.
    pub async fn cluster(&self) -> Result<Cluster, Error> {
        let client: BaseConsumer = self.reader(&[])?;
        let settings = self.settings.clone();
        self.beside("its list of topics", ASKED_WITHIN * 2, move || {
            let metadata = client.fetch_metadata(None, ASKED_WITHIN).map_err(|error| failed(&settings, error))?;
            let topics = metadata.topics().iter().map(|topic| (topic.name().to_owned(), topic.partitions().len()));
            let brokers = metadata.brokers().iter().map(rdkafka::metadata::MetadataBroker::id).collect();
            Ok(Cluster { brokers, topics: topics.collect() })
        })
        .await
    }

    /// The settings of one topic.
    ///
    /// # Errors
    /// `Service`.
    pub async fn topic_settings(&self, topic: &str) -> Result<BTreeMap<String, String>, Error> {
        self.described(ResourceSpecifier::Topic(topic)).await
    }

    /// The settings of one broker.
    ///
    /// # Errors
    /// `Service`.
    pub async fn broker_settings(&self, broker: i32) -> Result<BTreeMap<String, String>, Error> {
        self.described(ResourceSpecifier::Broker(broker)).await
    }

    async fn described(&self, of: ResourceSpecifier<'_>) -> Result<BTreeMap<String, String>, Error> {
        let answers = self.admin()?.describe_configs([&of], &options()).await.map_err(|e| self.failed(e))?;
        let mut settings = BTreeMap::new();
        for answer in answers {
            let resource = answer.map_err(|code| self.failed(KafkaError::AdminOp(code)))?;
            for entry in resource.entries {
                settings.insert(entry.name, entry.value.unwrap_or_default());
            }
        }
        Ok(settings)
    }

    /// Removes topics; one that is not there is no error.
    ///
    /// # Errors
    /// `Service` with the topic that could not be removed.
    pub async fn delete(&self, topics: &[String]) -> Result<(), Error> {
        let admin = self.admin()?;
        // A controller bounds what one request may change.
        for some in topics.chunks(REQUEST_TOPICS) {
            let names: Vec<&str> = some.iter().map(String::as_str).collect();
            for answer in admin.delete_topics(&names, &options()).await.map_err(|e| self.failed(e))? {
                match answer {
                    Ok(_) | Err((_, rdkafka::types::RDKafkaErrorCode::UnknownTopicOrPartition)) => {}
                    Err((topic, code)) => return Err(self.failed(format!("topic {topic} cannot be removed: {code}"))),
                }
            }
        }
        Ok(())
    }

    /// Every record of a ledger up to its present end; none when the topic is not there.
    ///
    /// # Errors
    /// `Ledger` for a record that cannot be read, `Service`.
    pub async fn ledger(&self, topic: &str) -> Result<Vec<LedgerRecord>, Error> {
        let client: BaseConsumer = self.reader(&[("enable.partition.eof", "true".into())])?;
        let (settings, name) = (self.settings.clone(), topic.to_owned());
        self.beside(&format!("reading {topic}"), LEDGER_READ_WITHIN, move || read_ledger(&client, &settings, &name))
            .await
    }

    /// Writes one record into partition 0 and waits until all replicas have it.
    ///
    /// # Errors
    /// `Service`.
    pub async fn put(&self, topic: &str, key: &str, value: &[u8]) -> Result<(), Error> {
        let ours =
            [("acks", "all".into()), ("enable.idempotence", "true".into()), ("message.timeout.ms", "20000".into())];
        let producer: FutureProducer = create(&self.settings, &client_config(&self.settings, "dflux", &ours)?)?;
        let record = FutureRecord::to(topic).partition(0).key(key).payload(value);
        producer.send(record, ASKED_WITHIN).await.map(|_| ()).map_err(|(error, _)| self.failed(error))
    }

    fn reader(&self, more: &[(&str, String)]) -> Result<BaseConsumer, Error> {
        let mut ours = vec![
            ("group.id", "dflux".to_owned()),
            ("enable.auto.commit", "false".into()),
            ("auto.offset.reset", "error".into()),
            ("isolation.level", "read_uncommitted".into()),
            ("fetch.wait.max.ms", "50".into()),
        ];
        ours.extend(more.iter().cloned());
        Ok(create(&self.settings, &client_config(&self.settings, "dflux", &ours)?)?)
    }

    fn admin(&self) -> Result<AdminClient<DefaultClientContext>, Error> {
        Ok(create(&self.settings, &client_config(&self.settings, "dflux", &[])?)?)
    }

    fn failed(&self, error: impl std::fmt::Display) -> Error {
        failed(&self.settings, error).into()
    }

    async fn beside<T: Send + 'static>(
        &self,
        what: &str,
        limit: Duration,
        work: impl FnOnce() -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let slow = || Error::KafkaSlow {
            brokers: self.settings.brokers.clone(),
            what: what.to_owned(),
            seconds: limit.as_secs(),
        };
        match tokio::time::timeout(limit, tokio::task::spawn_blocking(work)).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(join)) => Err(self.failed(join)),
            Err(_) => Err(slow()),
        }
    }
}

fn options() -> AdminOptions {
    AdminOptions::new().request_timeout(Some(ASKED_WITHIN)).operation_timeout(Some(ASKED_WITHIN))
}

fn read_ledger(client: &BaseConsumer, settings: &config::Kafka, topic: &str) -> Result<Vec<LedgerRecord>, Error> {
    let kafka = |error: KafkaError| Error::from(failed(settings, error));
    let metadata = client.fetch_metadata(None, ASKED_WITHIN).map_err(kafka)?;
    if !metadata.topics().iter().any(|held| held.name() == topic) {
        return Ok(Vec::new());
    }
    let mut assignment = TopicPartitionList::new();
    assignment.add_partition_offset(topic, 0, Offset::Beginning).map_err(kafka)?;
    client.assign(&assignment).map_err(kafka)?;
    let mut records = Vec::new();
    loop {
        match client.poll(ASKED_WITHIN) {
            Some(Ok(record)) => {
                let Some(value) = record.payload() else { continue };
                let decoded = LedgerRecord::decode(value).map_err(|source| Error::Ledger {
                    topic: topic.to_owned(),
                    offset: record.offset(),
                    source: Box::new(source),
                })?;
                records.push(decoded);
            }
            Some(Err(KafkaError::PartitionEOF(_))) => return Ok(records),
            Some(Err(error)) => return Err(kafka(error)),
            None => {
                return Err(Error::KafkaSlow {
                    brokers: settings.brokers.clone(),
                    what: format!("reading {topic}"),
                    seconds: ASKED_WITHIN.as_secs(),
                });
            }
        }
        if records.len() > LEDGER_RECORDS_MAX {
            return Err(failed(settings, format!("{topic} has more than {LEDGER_RECORDS_MAX} records")).into());
        }
    }
}
