//! A folder for the data of the servers that one process starts, removed when that process ends, however it ends.
//!
//! It does not lie in the checkout: PostgreSQL runs as another user than root and must be able to reach it, and the path
//! of a socket in it may not exceed 107 bytes.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::{Failure, Result};

/// Waits until the pipe to it is closed (the kernel does that when we die), then removes the folder. It tries for five
/// seconds, because the servers that write there are dying at the same time.
const JANITOR: &str =
    r#"cat >/dev/null; for _ in 1 2 3 4 5 6 7 8 9 10; do rm -rf -- "$1" 2>/dev/null && exit; sleep 0.5; done"#;

/// Marks a folder that DFLUX_KEEP=1 made: `sweep` leaves it to the person who asked for it.
const KEPT: &str = "kept";

static OF_THIS_PROCESS: OnceLock<PathBuf> = OnceLock::new();
static NUMBER: AtomicUsize = AtomicUsize::new(0);

/// Where all scratch folders lie: on disk, since /tmp is memory on some machines.
pub fn base() -> PathBuf {
    std::env::var_os("DFLUX_SCRATCH").map_or_else(|| PathBuf::from("/var/tmp/dflux"), PathBuf::from)
}

/// A new folder `name-N` under the folder of this process. DFLUX_KEEP=1 keeps it after the end.
///
/// # Errors
/// When it cannot be made.
pub fn folder(name: &str) -> Result<PathBuf> {
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let path = of_this_process()?.join(format!("{name}-{number}"));
    make(&path)?;
    Ok(path)
}

/// Makes a folder that every user can enter.
///
/// # Errors
/// When it cannot be made.
pub fn make(path: &Path) -> Result<()> {
    std::fs::create_dir_all(path).map_err(Failure::io(format!("making {}", path.display())))?;
    let everyone = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(path, everyone).map_err(Failure::io(format!("opening {} to all", path.display())))
}

fn of_this_process() -> Result<PathBuf> {
    if let Some(path) = OF_THIS_PROCESS.get() {
        return Ok(path.clone());
    }
    make(&base())?;
    sweep();
    let path = base().join(format!("p{}", std::process::id()));
    if OF_THIS_PROCESS.set(path.clone()).is_ok() {
        make(&path)?;
        if std::env::var_os("DFLUX_KEEP").is_none() {
            start_janitor(&path)?;
        } else {
            let mark = path.join(KEPT);
            std::fs::write(&mark, "").map_err(Failure::io(format!("writing {}", mark.display())))?;
        }
    }
    make(&path)?;
    Ok(path)
}

/// Removes what processes left behind whose janitor died too, at a reboot say. Folders of living processes stay.
fn sweep() {
    let Ok(listed) = std::fs::read_dir(base()) else { return };
    for path in listed.flatten().map(|entry| entry.path()) {
        let pid = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_prefix('p'));
        let Some(pid) = pid.filter(|pid| !pid.is_empty() && pid.bytes().all(|byte| byte.is_ascii_digit())) else {
            continue;
        };
        if !Path::new("/proc").join(pid).exists() && !path.join(KEPT).exists() {
            // Another process may be sweeping the same folder.
            let _raced = std::fs::remove_dir_all(&path);
        }
    }
}

fn start_janitor(path: &Path) -> Result<()> {
    let janitor = Command::new("setsid")
        .args(["sh", "-c", JANITOR, "janitor"])
        .arg(path)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(Failure::io("starting the janitor of the scratch folder"))?;
    // The child is never dropped: its end of the pipe must stay open as long as this process lives.
    static JANITORS: std::sync::Mutex<Vec<std::process::Child>> = std::sync::Mutex::new(Vec::new());
    JANITORS.lock().expect("no holder of this lock panics").push(janitor);
    Ok(())
}
