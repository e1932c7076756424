//! The file store against the disk: many readers, two writers, other people's writers, and `kill -9` after each step.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::*;

const A: &str = "postgresql://app:one@source:5432/shop";
const B: &str =
    "postgresql://app:a-much-longer-password-than-the-other@target.example.org:6432/shop?application_name=x";

/// A folder of its own, removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Folder {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("dflux-file-store-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    fn file(&self, content: &str) -> (PathBuf, FileStore) {
        let path = self.0.join("database.url");
        fs::write(&path, content).unwrap();
        (path.clone(), FileStore::new(&path))
    }

    /// All but the file itself and the lock.
    fn left(&self) -> Vec<String> {
        let names = fs::read_dir(&self.0).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| !name.starts_with("database.url") && !name.ends_with(".dflux-lock")).collect()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _gone = fs::remove_dir_all(&self.0);
    }
}

fn value(text: &str) -> Value {
    Value::new("a test", text).unwrap()
}

#[tokio::test]
async fn a_swap_keeps_mode_owner_last_newline_and_a_symbolic_link() {
    let folder = Folder::new();
    let (path, _) = folder.file(&format!("{A}\n"));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    let owner = if nix::unistd::geteuid().is_root() { 12_345 } else { fs::metadata(&path).unwrap().uid() };
    std::os::unix::fs::chown(&path, Some(owner), None).unwrap();
    let link = folder.0.join("database.url-link");
    std::os::unix::fs::symlink("database.url", &link).unwrap();
    let store = FileStore::new(&link);
    let before = store.get().await.unwrap();
    assert_eq!(before.value.expose(), A);
    let Swapped::Applied(version) = store.compare_and_swap(&before.version, &value(B)).await.unwrap() else {
        panic!("not applied")
    };
    let after = store.get().await.unwrap();
    assert_eq!((after.value.expose(), &after.version), (B, &version));
    assert_eq!(fs::read_to_string(&path).unwrap(), format!("{B}\n"));
    let metadata = fs::metadata(&path).unwrap();
    assert_eq!((metadata.mode() & 0o7777, metadata.uid()), (0o640, owner));
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(store.read_back(&before.version, &value(B)).await.unwrap(), Swapped::Applied(version));
    assert!(folder.left().is_empty());
}

#[tokio::test]
async fn what_somebody_else_wrote_in_between_is_left_alone() {
    let folder = Folder::new();
    let (path, store) = folder.file(A);
    // Written in place, renamed over it, and the same content again: each is another version.
    let other = A.replace("shop", "shoq");
    let writers: [&dyn Fn(); 3] = [
        &|| fs::write(&path, &other).unwrap(),
        &|| {
            fs::write(folder.0.join("database.url-new"), &other).unwrap();
            fs::rename(folder.0.join("database.url-new"), &path).unwrap();
        },
        &|| fs::write(&path, A).unwrap(),
    ];
    for write in writers {
        let before = store.get().await.unwrap();
        // The kernel's clock for files goes by ticks of some milliseconds.
        std::thread::sleep(std::time::Duration::from_millis(20));
        write();
        let there = fs::read_to_string(&path).unwrap();
        let outcome = store.compare_and_swap(&before.version, &value(B)).await.unwrap();
        let Swapped::NotApplied { found: Some(found) } = outcome else { panic!("{outcome:?}") };
        assert_eq!(found.value.expose(), there);
        assert_eq!(fs::read_to_string(&path).unwrap(), there);
        assert_eq!(
            store.read_back(&before.version, &value(B)).await.unwrap(),
            Swapped::NotApplied { found: Some(found) }
        );
    }
    // Between our look and the rename.
    let before = store.get().await.unwrap();
    let meddle = |step| {
        if step == Step::Synced {
            fs::write(&path, &other).unwrap();
        }
    };
    let outcome = store.swap(&before.version, &value(B), &meddle).unwrap();
    assert!(matches!(outcome, Swapped::NotApplied { found: Some(_) }), "{outcome:?}");
    assert_eq!(fs::read_to_string(&path).unwrap(), other);
    assert!(folder.left().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_readers_never_see_a_part() {
    let folder = Folder::new();
    let (_, store) = folder.file(A);
    let (done, reads) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let readers: Vec<_> = (0..1_000)
        .map(|_| {
            let (store, done, reads) = (store.clone(), done.clone(), reads.clone());
            tokio::spawn(async move {
                while !done.load(Ordering::Relaxed) {
                    let found = store.get().await.unwrap().value;
                    assert!([A, B].contains(&found.expose()), "{} bytes", found.expose().len());
                    reads.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    let mut version = store.get().await.unwrap().version;
    for round in 0..300 {
        let next = value(if round % 2 == 0 { B } else { A });
        match store.compare_and_swap(&version, &next).await.unwrap() {
            Swapped::Applied(now) => version = now,
            other => panic!("{other:?}"),
        }
    }
    done.store(true, Ordering::Relaxed);
    for reader in readers {
        reader.await.unwrap();
    }
    assert!(reads.load(Ordering::Relaxed) >= 1_000, "every reader has read");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_writers_with_one_version_one_is_applied() {
    let folder = Folder::new();
    let (_, store) = folder.file(A);
    for round in 0..200 {
        let before = store.get().await.unwrap();
        let [one, two] = ["one", "two"].map(|who| {
            let (store, version) = (store.clone(), before.version.clone());
            let value = value(&format!("postgresql://{who}:{round}@h/d"));
            tokio::spawn(async move { (store.compare_and_swap(&version, &value).await.unwrap(), value) })
        });
        let outcomes = [one.await.unwrap(), two.await.unwrap()];
        let applied: Vec<_> = outcomes.iter().filter(|(swapped, _)| matches!(swapped, Swapped::Applied(_))).collect();
        let [(Swapped::Applied(version), value)] = applied.as_slice() else { panic!("{outcomes:?}") };
        let after = store.get().await.unwrap();
        assert_eq!((&after.value, &after.version), (value, version));
        // The other one was told so, and what won.
        assert!(outcomes.iter().any(|(swapped, _)| *swapped == Swapped::NotApplied { found: Some(after.clone()) }));
    }
}

#[test]
fn a_kill_after_any_step_leaves_one_of_the_two_values_and_no_lock() {
    const CHILD: &str = "DFLUX_TEST_CRASHES_AT";
    if let Ok(at) = std::env::var(CHILD) {
        let store = FileStore::new(Path::new(&std::env::var("DFLUX_TEST_FILE").unwrap()));
        let version = store.read().unwrap().version;
        let crash = |step: Step| {
            if format!("{step:?}") == at {
                kill(Pid::this(), Signal::SIGKILL).unwrap();
            }
        };
        store.swap(&version, &value(B), &crash).unwrap();
        unreachable!("it was to be killed at {at}");
    }
    for step in [Step::Locked, Step::Written, Step::Synced, Step::Renamed, Step::FolderSynced] {
        let folder = Folder::new();
        let (path, store) = folder.file(A);
        let before = store.read().unwrap();
        let name = "store::file::tests::a_kill_after_any_step_leaves_one_of_the_two_values_and_no_lock";
        let mut child = Command::new(std::env::current_exe().unwrap());
        let child = child.args(["--exact", name]).env(CHILD, format!("{step:?}")).env("DFLUX_TEST_FILE", &path);
        assert_eq!(child.output().unwrap().status.signal(), Some(9), "{step:?}");
        let renamed = matches!(step, Step::Renamed | Step::FolderSynced);
        let now = store.read().unwrap();
        assert_eq!(now.value.expose(), if renamed { B } else { A }, "{step:?}");
        assert_eq!(now.version != before.version, renamed, "{step:?}");
        // What it left behind hinders nobody and is gone after the next swap.
        let outcome = store.swap(&now.version, &value(A), &NO_CRASH).unwrap();
        assert!(matches!(outcome, Swapped::Applied(_)), "{step:?}: {outcome:?}");
        assert!(!folder.0.join(".database.url.dflux-new").exists());
    }
}

#[tokio::test]
async fn what_is_no_file_with_one_url_is_an_error_that_shows_nothing() {
    let folder = Folder::new();
    let (path, store) = folder.file("postgresql://u:secret@h/d\npostgresql://u:secret@i/d\n");
    let error = store.get().await.unwrap_err().to_string();
    assert!(error.contains("more than one line") && !error.contains("secret"), "{error}");
    fs::remove_file(&path).unwrap();
    assert!(matches!(store.get().await.unwrap_err(), Error::Read { .. }));
    assert!(matches!(FileStore::new(&folder.0).get().await.unwrap_err(), Error::Read { .. }));
    let outcome = store.compare_and_swap(&Version("x".into()), &value(B)).await;
    assert!(matches!(outcome.unwrap_err(), Error::Read { .. }));
    assert!(!path.exists());
}
