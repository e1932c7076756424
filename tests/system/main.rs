//! The system tests: real PostgreSQL, real Kafka, a real registry and the real programs. One binary, so that the servers
//! that tests share are started once.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

mod alerts;
mod changes;
mod consumer;
mod continuous;
mod control;
mod corruption;
mod crash;
mod cutover;
mod etcd_store;
mod evolving;
mod fanout;
mod feed;
mod fence;
mod joining;
mod large;
mod moving;
mod pacing;
mod page;
mod pgbouncer_store;
mod prepare_again;
mod producer;
mod readers;
mod refusals;
mod repairing;
mod reverse;
mod schema;
mod sequences;
mod smoke;
mod tables;
mod telling;
mod untold;
mod validator;
mod values;
mod walsender;
