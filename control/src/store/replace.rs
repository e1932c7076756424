//! Replaces a file as a whole, so that its readers see the old content or the new one and never a part, and a crash leaves
//! one of the two: temporary file, fsync, rename, fsync of the folder, all under a lock.
//!
//! The lock is advisory (`flock` on a file beside it): it keeps two of us apart, and nobody who does not ask for it. For all
//! others the file is looked at once more right before the rename; who writes within the microseconds between that look and
//! the rename is overwritten. A file has no better compare-and-swap.

use std::fs::{self, File, Metadata, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::Error;

const LOCK_WITHIN: Duration = Duration::from_secs(5);
const LOCK_LOOKS_EVERY: Duration = Duration::from_millis(10);
/// A file that somebody writes in place changes while it is read: that often it is read anew.
const READS_MAX: usize = 20;
const BYTES_MAX: u64 = 4 << 20;

/// A moment of a replacement after which a crash may come. For tests; nobody else has to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Locked,
    Written,
    Synced,
    Renamed,
    FolderSynced,
}

pub(super) const NO_CRASH: fn(Step) = |_| {};

/// A file's content, and what tells this state of it from others.
#[derive(Debug)]
pub(super) struct Seen {
    pub content: Vec<u8>,
    metadata: Metadata,
}

impl Seen {
    /// Inode and time of the last change; an edit in place keeps the one, a copy of an old file over it may keep both: whoever
    /// makes a version of it adds the content.
    pub fn stamp(&self) -> String {
        stamp(&self.metadata)
    }
}

fn stamp(metadata: &Metadata) -> String {
    format!("{}-{}.{:09}", metadata.ino(), metadata.mtime(), metadata.mtime_nsec())
}

fn same(one: &Metadata, other: &Metadata) -> bool {
    (one.dev(), one.ino(), one.len()) == (other.dev(), other.ino(), other.len()) && stamp(one) == stamp(other)
}

/// # Errors
/// `Read`, also when it is no regular file, too large, or never at rest.
pub(super) fn read(path: &Path) -> Result<Seen, Error> {
    read_at_rest(path).map_err(|source| Error::Read { path: path.to_owned(), source })
}

fn read_at_rest(path: &Path) -> io::Result<Seen> {
    for _ in 0..READS_MAX {
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() || metadata.len() > BYTES_MAX {
            return Err(io::Error::other("it is no regular file of at most 4 MiB"));
        }
        let mut content = Vec::new();
        (&file).take(BYTES_MAX + 1).read_to_end(&mut content)?;
        if same(&metadata, &file.metadata()?) && content.len() as u64 == metadata.len() {
            return Ok(Seen { content, metadata });
        }
    }
    Err(io::Error::other("it is being written all the time"))
}

/// How a replacement ended. An error says that nothing was changed.
#[derive(Debug)]
pub(super) enum Outcome {
    /// It is on the disk; this is it.
    Done(Seen),
    /// The file is not the one that was seen any more.
    Changed,
    /// It was renamed, and may be the old one again after a crash of the machine.
    Unsure(String),
}

/// The lock of one file. It ends with this value, and with the process.
#[derive(Debug)]
pub(super) struct Locked {
    /// The file itself: a symbolic link is followed, and stays one.
    path: PathBuf,
    folder: PathBuf,
    name: String,
    _lock: File,
}

impl Locked {
    /// # Errors
    /// `Read` if the file is not there, `Write` if no lock file can be made, `Busy` if another holds it too long.
    pub fn take(path: &Path) -> Result<Locked, Error> {
        let resolved = fs::canonicalize(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
        let (Some(folder), Some(name)) = (resolved.parent(), resolved.file_name()) else {
            let source = io::Error::other("it is no file in a folder");
            return Err(Error::Read { path: path.to_owned(), source });
        };
        let (folder, name) = (folder.to_owned(), name.to_string_lossy().into_owned());
        let lock_path = folder.join(format!(".{name}.dflux-lock"));
        let failed = |source| Error::Write { path: lock_path.clone(), source };
        let lock = File::options().create(true).append(true).mode(0o600).open(&lock_path).map_err(failed)?;
        let ends = Instant::now() + LOCK_WITHIN;
        loop {
            match lock.try_lock() {
                Ok(()) => return Ok(Locked { path: resolved, folder, name, _lock: lock }),
                Err(fs::TryLockError::WouldBlock) if Instant::now() < ends => std::thread::sleep(LOCK_LOOKS_EVERY),
                Err(fs::TryLockError::WouldBlock) => {
                    return Err(Error::Busy { path: lock_path, seconds: LOCK_WITHIN.as_secs() });
                }
                Err(fs::TryLockError::Error(source)) => return Err(failed(source)),
            }
        }
    }

    /// # Errors
    /// `Read`.
    pub fn read(&self) -> Result<Seen, Error> {
        read(&self.path)
    }

    /// Puts `content` in the place of what was `seen`, with its mode and owner.
    ///
    /// # Errors
    /// `Write`, `Owner`: nothing was changed.
    pub fn replace(&self, seen: &Seen, content: &[u8], step: &dyn Fn(Step)) -> Result<Outcome, Error> {
        step(Step::Locked);
        let temporary = self.folder.join(format!(".{}.dflux-new", self.name));
        let failed = |source| Error::Write { path: temporary.clone(), source };
        // Of one that crashed here: nobody else writes it while we hold the lock.
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let guard = Temporary(&temporary);
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(&temporary).map_err(failed)?;
        file.write_all(content).map_err(failed)?;
        self.dress(&file, seen, &temporary)?;
        step(Step::Written);
        file.sync_all().map_err(failed)?;
        step(Step::Synced);
        match fs::metadata(&self.path) {
            Ok(now) if same(&now, &seen.metadata) => {}
            _ => return Ok(Outcome::Changed),
        }
        fs::rename(&temporary, &self.path).map_err(|source| Error::Write { path: self.path.clone(), source })?;
        std::mem::forget(guard);
        step(Step::Renamed);
        let synced = File::open(&self.folder).and_then(|folder| folder.sync_all());
        step(Step::FolderSynced);
        let metadata = synced.and_then(|()| file.metadata());
        Ok(match metadata {
            Ok(metadata) => Outcome::Done(Seen { content: content.to_vec(), metadata }),
            Err(error) => Outcome::Unsure(format!(
                "{} is in place, but its folder cannot be synced: {error}",
                self.path.display()
            )),
        })
    }

    /// The same mode and owner, or no replacement: an application that cannot read it any more is an outage. Access lists and
    /// other extended attributes are not carried over.
    fn dress(&self, file: &File, seen: &Seen, temporary: &Path) -> Result<(), Error> {
        let failed = |source| Error::Write { path: temporary.to_owned(), source };
        let (own, wanted) = (file.metadata().map_err(failed)?, &seen.metadata);
        if (own.uid(), own.gid()) != (wanted.uid(), wanted.gid()) {
            std::os::unix::fs::fchown(file, Some(wanted.uid()), Some(wanted.gid())).map_err(|source| Error::Owner {
                path: self.path.clone(),
                user: wanted.uid(),
                group: wanted.gid(),
                source,
            })?;
        }
        file.set_permissions(Permissions::from_mode(wanted.mode() & 0o7777)).map_err(failed)
    }
}

/// Removes the temporary file, which holds a password, unless it was renamed.
struct Temporary<'a>(&'a Path);

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        // The next replacement removes it, if this cannot.
        let _left = fs::remove_file(self.0);
    }
}
