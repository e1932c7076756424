//! Free ports on loopback that stay ours while a server restarts, also when several harnesses run side by side.
//!
//! Binding port 0 and letting go hands the number back to the kernel, which soon gives it to any outgoing connection: a
//! broker that is killed and started again then finds its port taken. So ports come from below the ephemeral range, and
//! a lock file per port, held by this process, keeps other harnesses away from it.

use std::fs::File;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::Mutex;

use rand::RngExt;

use crate::{Failure, Result};

/// Below 32768, where Linux begins to number outgoing connections.
const RANGE: std::ops::Range<u16> = 18_000..32_000;
const TRIES: usize = 500;

static HELD: Mutex<Vec<(u16, File)>> = Mutex::new(Vec::new());

/// A port of 127.0.0.1 that nobody listens on and that no other harness is given while this process lives.
///
/// # Errors
/// When 500 random ports were all taken, or the lock folder cannot be written.
pub fn free() -> Result<u16> {
    let folder = std::env::temp_dir().join("dflux-ports");
    std::fs::create_dir_all(&folder).map_err(Failure::io(format!("making {}", folder.display())))?;
    for _ in 0..TRIES {
        let port = rand::rng().random_range(RANGE);
        let path = folder.join(port.to_string());
        let lock = File::options().create(true).append(true).open(&path);
        let lock = lock.map_err(Failure::io(format!("opening {}", path.display())))?;
        if lock.try_lock().is_err() || TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_err() {
            continue;
        }
        HELD.lock().expect("no holder of this lock panics").push((port, lock));
        return Ok(port);
    }
    Err(Failure::Other(format!("no free port in {RANGE:?} after {TRIES} tries")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_port_is_given_twice() {
        let mut ports: Vec<u16> = (0..50).map(|_| free().unwrap()).collect();
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 50);
    }
}
