//! A server that one process at a time is: started when it is asked for, killed, started again on what it holds.

use std::fmt::Display;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::process::{Launch, Life, Process};
use crate::{Result, wait};

const STOPPED_WITHIN: Duration = Duration::from_secs(30);
const FROZEN_WITHIN: Duration = Duration::from_secs(10);

/// The process that runs now, if one does.
#[derive(Debug)]
pub struct Place {
    life: Life,
    process: Mutex<Option<Process>>,
}

impl Place {
    pub fn new(life: Life) -> Place {
        Place { life, process: Mutex::new(None) }
    }

    fn process(&self) -> MutexGuard<'_, Option<Process>> {
        self.process.lock().expect("no holder of this lock panics")
    }

    /// Starts what `launch` says and waits until `ask` succeeds. Does nothing if it runs.
    ///
    /// # Errors
    /// When it did not come up, with its log.
    pub fn start<T, E: Display>(
        &self,
        limit: Duration,
        launch: impl FnOnce() -> Result<Launch>,
        ask: impl FnMut() -> std::result::Result<T, E>,
    ) -> Result<()> {
        let mut place = self.process();
        if place.as_ref().is_some_and(|process| process.ended().is_none()) {
            return Ok(());
        }
        let when_we_die = if self.life == Life::Bound { Some(Signal::SIGKILL) } else { None };
        let process = launch()?.when_we_die(when_we_die).start()?;
        process.wait_until(&format!("{} answers", process.name()), limit, ask)?;
        *place = Some(process);
        Ok(())
    }

    /// `kill -9`.
    pub fn kill(&self) {
        let taken = self.process().take();
        drop(taken);
    }

    /// An orderly shutdown.
    ///
    /// # Errors
    /// When it had to be killed.
    pub fn stop(&self) -> Result<()> {
        let taken = self.process().take();
        taken.map_or(Ok(()), |process| process.stop(Signal::SIGTERM, STOPPED_WITHIN).map(|_| ()))
    }

    pub fn signal(&self, signal: Signal) {
        if let Some(process) = self.process().as_ref() {
            process.signal(signal);
        }
    }

    /// SIGSTOP, and waits until each of its threads stands still: the signal returns before.
    ///
    /// # Errors
    /// When they run on.
    pub fn freeze(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP);
        let Some(pid) = self.pid() else { return Ok(()) };
        wait::until_true(&format!("process {pid} stands still"), FROZEN_WITHIN, || {
            let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
            let mut states =
                threads.map(|thread| std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default());
            states.all(|stat| stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" T")))
        })
    }

    pub fn pid(&self) -> Option<i32> {
        self.process().as_ref().map(Process::pid)
    }
}
