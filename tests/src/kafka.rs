//! A real Kafka broker (KRaft, one node) on loopback, and what a test wants to ask it: make a topic, put a record, read
//! all that a topic holds.
//!
//! Topics are not made by themselves: a program that forgets to make one must fail here as it would in production.

use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Headers, Message};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use crate::process::{Launch, Life};
use crate::server::Place;
use crate::sql::blocking;
use crate::{Failure, Result, cache, ports, scratch};

const STARTED_WITHIN: Duration = Duration::from_secs(90);
const ASKED_WITHIN: Duration = Duration::from_secs(15);
const READ_WITHIN: Duration = Duration::from_secs(60);
/// The cluster's id, any 16 bytes in base64: one node never meets another.
const CLUSTER: &str = "ZGZsdXgtdGVzdC1rYWZrYQ";

#[derive(Debug, Clone, Default)]
pub struct Options {
    settings: Vec<(String, String)>,
    folder: Option<PathBuf>,
    life: Life,
}

impl Options {
    /// A line of server.properties; the last one of a name counts.
    pub fn setting(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn folder(mut self, folder: &Path) -> Self {
        self.folder = Some(folder.to_owned());
        self
    }

    pub fn life(mut self, life: Life) -> Self {
        self.life = life;
        self
    }
}

/// A record as it lies in a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub partition: i32,
    pub offset: i64,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub headers: Vec<(String, Vec<u8>)>,
}

/// A broker; killed when dropped, if its life is bound.
#[derive(Debug)]
pub struct Broker {
    folder: PathBuf,
    port: u16,
    place: Place,
}

impl Broker {
    /// Formats a log folder and starts the broker; returns when it answers.
    ///
    /// # Errors
    /// When Kafka cannot be fetched, or did not come up, with its log.
    pub fn start(options: Options) -> Result<Broker> {
        let folder = match &options.folder {
            Some(folder) => folder.clone(),
            None => scratch::folder("kafka")?,
        };
        scratch::make(&folder)?;
        let broker = Broker { folder, port: ports::free()?, place: Place::new(options.life) };
        broker.write_properties(ports::free()?, &options.settings)?;
        let format = ["kafka.tools.StorageTool", "format", "-t", CLUSTER, "-c", "server.properties"];
        broker.java("format")?.arguments(format).run()?;
        broker.start_again()?;
        Ok(broker)
    }

    /// Two threads of a kind: by default eight take turns at each request and halve what two cores can do.
    fn write_properties(&self, controller_port: u16, settings: &[(String, String)]) -> Result<()> {
        let (port, folder) = (self.port, self.folder.display());
        let mut text = format!(
            "process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller_port}
controller.listener.names=CONTROLLER
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs={folder}/log
auto.create.topics.enable=false
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
num.io.threads=2
num.network.threads=1
group.initial.rebalance.delay.ms=0
"
        );
        for (name, value) in settings {
            text.push_str(&format!("{name}={value}\n"));
        }
        let path = self.folder.join("server.properties");
        std::fs::write(&path, text).map_err(Failure::io(format!("writing {}", path.display())))
    }

    /// Java itself and not Kafka's scripts: they are in no Maven artifact, and a child of a shell would outlive us. For a
    /// broker that lives for minutes: the second compiler and a concurrent collector take half of its time for nothing.
    fn java(&self, name: &str) -> Result<Launch> {
        let classpath = format!("{}/*", cache::part(&["kafka"])?.display());
        let logging = "-Dorg.slf4j.simpleLogger.showDateTime=true -Dorg.slf4j.simpleLogger.defaultLogLevel=warn";
        let launch = Launch::new(name, "java", &self.folder)
            .arguments(["-Xmx512m", "-Xms512m", "-XX:MetaspaceSize=96m", "-XX:+ExitOnOutOfMemoryError"])
            .arguments(["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"])
            .arguments(logging.split(' '))
            .arguments(["-cp", &classpath]);
        Ok(launch)
    }

    /// Starts it on the log that it has, on the same port. Does nothing if it runs.
    ///
    /// # Errors
    /// When it did not come up, with its log.
    pub fn start_again(&self) -> Result<()> {
        let admin: BaseConsumer = self.client().create().map_err(Failure::kafka("making a client of the broker"))?;
        let launch = || Ok(self.java("kafka")?.arguments(["kafka.Kafka", "server.properties"]));
        self.place.start(STARTED_WITHIN, launch, || {
            let metadata = admin.fetch_metadata(None, Duration::from_secs(2)).map_err(|error| error.to_string())?;
            if metadata.brokers().is_empty() { Err("no broker is registered yet".to_owned()) } else { Ok(()) }
        })
    }

    /// `kill -9`.
    pub fn kill(&self) {
        self.place.kill();
    }

    /// An orderly shutdown and a start.
    ///
    /// # Errors
    /// When it does not stop or come up.
    pub fn restart(&self) -> Result<()> {
        self.place.stop()?;
        self.start_again()
    }

    /// Stops it where it is, connections open (SIGSTOP).
    pub fn pause(&self) {
        self.place.signal(Signal::SIGSTOP);
    }

    pub fn resume(&self) {
        self.place.signal(Signal::SIGCONT);
    }

    pub fn pid(&self) -> Option<i32> {
        self.place.pid()
    }

    /// `host:port`, for `[kafka] brokers`.
    pub fn bootstrap(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// A client's configuration that reaches this broker.
    pub fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", self.bootstrap()).set("group.id", "harness");
        config.set("enable.auto.commit", "false").set("log_level", "0");
        config
    }

    fn admin(&self) -> Result<AdminClient<DefaultClientContext>> {
        self.client().create().map_err(Failure::kafka("making an administrator of the broker"))
    }

    /// Makes a topic. `settings` are its configuration, such as `("cleanup.policy", "compact")`.
    ///
    /// # Errors
    /// When it exists already, or the broker does not answer.
    pub fn create_topic(&self, name: &str, partitions: i32, settings: &[(&str, &str)]) -> Result<()> {
        let admin = self.admin()?;
        let owned: Vec<(String, String)> =
            settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let topic = name.to_owned();
        let outcome = blocking(async move {
            let mut new = NewTopic::new(&topic, partitions, TopicReplication::Fixed(1));
            for (name, value) in &owned {
                new = new.set(name, value);
            }
            admin.create_topics(&[new], &AdminOptions::new().operation_timeout(Some(ASKED_WITHIN))).await
        });
        self.one_outcome(&format!("making topic {name}"), outcome)
    }

    /// Deletes a topic and waits until the broker no longer lists it.
    ///
    /// # Errors
    /// When there is no such topic.
    pub fn delete_topic(&self, name: &str) -> Result<()> {
        let (admin, topic) = (self.admin()?, name.to_owned());
        let outcome = blocking(async move {
            admin.delete_topics(&[&topic], &AdminOptions::new().operation_timeout(Some(ASKED_WITHIN))).await
        });
        self.one_outcome(&format!("deleting topic {name}"), outcome)?;
        crate::wait::until(&format!("topic {name} is gone"), ASKED_WITHIN, || {
            let topics = self.topics().map_err(|failure| failure.to_string())?;
            if topics.iter().any(|(listed, _)| listed == name) { Err("listed".to_owned()) } else { Ok(()) }
        })
    }

    fn one_outcome(
        &self,
        what: &str,
        outcome: rdkafka::error::KafkaResult<Vec<rdkafka::admin::TopicResult>>,
    ) -> Result<()> {
        for result in outcome.map_err(Failure::kafka(what))? {
            result.map_err(|(topic, code)| Failure::Other(format!("{what}: {topic}: {code}")))?;
        }
        Ok(())
    }

    /// All topics with their number of partitions, Kafka's own (`__…`) left out.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub fn topics(&self) -> Result<Vec<(String, usize)>> {
        let client: BaseConsumer = self.client().create().map_err(Failure::kafka("making a client"))?;
        let metadata = client.fetch_metadata(None, ASKED_WITHIN).map_err(Failure::kafka("listing the topics"))?;
        let topics = metadata.topics().iter().filter(|topic| !topic.name().starts_with("__"));
        Ok(topics.map(|topic| (topic.name().to_owned(), topic.partitions().len())).collect())
    }

    /// Puts one record and waits until it is acknowledged. Returns its offset.
    ///
    /// # Errors
    /// When the broker refuses it or does not answer.
    pub fn put(&self, topic: &str, partition: i32, key: Option<&[u8]>, value: Option<&[u8]>) -> Result<i64> {
        let mut config = self.client();
        config.set("message.timeout.ms", "15000");
        let producer: FutureProducer = config.create().map_err(Failure::kafka("making a producer"))?;
        let (topic_name, key, value) = (topic.to_owned(), key.map(<[u8]>::to_vec), value.map(<[u8]>::to_vec));
        let outcome = blocking(async move {
            let mut record = FutureRecord::<[u8], [u8]>::to(&topic_name).partition(partition);
            record.key = key.as_deref();
            record.payload = value.as_deref();
            producer.send(record, ASKED_WITHIN).await
        });
        match outcome {
            Ok(delivery) => Ok(delivery.offset),
            Err((source, _)) => Err(Failure::Kafka { what: format!("putting a record into {topic}"), source }),
        }
    }

    /// All records of all partitions of a topic, from the oldest to those that are there now, each partition in order.
    ///
    /// # Errors
    /// When there is no such topic, or it cannot be read within a minute.
    pub fn records(&self, topic: &str) -> Result<Vec<Record>> {
        let what = || format!("reading topic {topic}");
        let client: BaseConsumer = self.client().create().map_err(Failure::kafka(what()))?;
        let metadata = client.fetch_metadata(Some(topic), ASKED_WITHIN).map_err(Failure::kafka(what()))?;
        let partitions = metadata.topics().first().map_or(&[][..], |found| found.partitions());
        if partitions.is_empty() {
            return Err(Failure::Other(format!("there is no topic {topic}")));
        }
        let mut wanted = Vec::new();
        for partition in partitions {
            let ends = client.fetch_watermarks(topic, partition.id(), ASKED_WITHIN).map_err(Failure::kafka(what()))?;
            wanted.push((partition.id(), ends.0, ends.1));
        }
        let mut records = Vec::new();
        for (partition, first, end) in wanted {
            if first < end {
                read_partition(&client, topic, partition, end, &mut records)?;
            }
        }
        Ok(records)
    }
}

/// Reads up to `end` (exclusive). In a compacted topic, or one with transactions, the last offsets may hold no record:
/// the consumer's position tells, not the last record's offset.
fn read_partition(
    client: &BaseConsumer,
    topic: &str,
    partition: i32,
    end: i64,
    records: &mut Vec<Record>,
) -> Result<()> {
    let what = || format!("reading partition {partition} of {topic}");
    let mut assignment = TopicPartitionList::new();
    assignment.add_partition_offset(topic, partition, Offset::Beginning).map_err(Failure::kafka(what()))?;
    client.assign(&assignment).map_err(Failure::kafka(what()))?;
    let began = std::time::Instant::now();
    loop {
        if let Some(polled) = client.poll(Duration::from_millis(100)) {
            let message = polled.map_err(Failure::kafka(what()))?;
            let headers = message.headers().map_or_else(Vec::new, |headers| {
                let owned = |header: rdkafka::message::Header<'_, &[u8]>| {
                    (header.key.to_owned(), header.value.unwrap_or_default().to_vec())
                };
                headers.iter().map(owned).collect()
            });
            let (key, value) = (message.key().map(<[u8]>::to_vec), message.payload().map(<[u8]>::to_vec));
            if message.offset() < end {
                records.push(Record { partition, offset: message.offset(), key, value, headers });
            }
        }
        let position = client.position().map_err(Failure::kafka(what()))?;
        let reached = position.find_partition(topic, partition).map(|element| element.offset());
        if matches!(reached, Some(Offset::Offset(offset)) if offset >= end) {
            return Ok(());
        }
        if began.elapsed() > READ_WITHIN {
            let last = format!("position {reached:?} of {end}");
            return Err(Failure::Deadline { what: what(), seconds: READ_WITHIN.as_secs(), last });
        }
    }
}
