//! The command store against real programs: shell scripts that keep the value in a file.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use super::*;

const A: &str = "postgresql://app:secret-a@source:5432/shop";
const B: &str = "postgresql://app:secret-b@target:5432/shop";

/// Keeps the value in the file `value` and the version in the file `version`.
const HOOK: &str = r#"
    cd "$1"
    case $2 in
    get) printf '{"value": "%s", "version": "%s"}' "$(cat value)" "$(cat version)" ;;
    cas)
        if [ "$3" != "$(cat version)" ]; then "$0" "$1" get; exit 3; fi
        new=$(cat); echo $(($3 + 1)) >version; printf %s "$new" >value
        printf '{"version": "%s"}' "$(cat version)" ;;
    esac"#;

struct Hook {
    folder: PathBuf,
    store: CommandStore,
}

impl Hook {
    fn new(script: &str) -> Hook {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("dflux-command-store-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("value"), A).unwrap();
        std::fs::write(folder.join("version"), "1").unwrap();
        // By way of sh: a program that was just written may be held open for writing by a child of another test.
        let hook = folder.join("hook");
        std::fs::write(&hook, format!("{script}\n")).unwrap();
        let arguments = ["/bin/sh", &hook.display().to_string(), &folder.display().to_string()];
        let section = service::config::Command { command: arguments.map(str::to_owned).to_vec(), timeout_seconds: 1 };
        Hook { folder, store: CommandStore::new(&section).unwrap() }
    }

    async fn swap(&self) -> Swapped {
        self.store.compare_and_swap(&Version("1".into()), &Value::new("", B).unwrap()).await.unwrap()
    }
}

impl Drop for Hook {
    fn drop(&mut self) {
        let _gone = std::fs::remove_dir_all(&self.folder);
    }
}

#[tokio::test]
async fn a_hook_that_keeps_to_the_protocol_is_a_store() {
    let hook = Hook::new(&HOOK.replace("\"$0\" \"$1\" get", "sh \"$0\" \"$1\" get"));
    let before = hook.store.get().await.unwrap();
    assert_eq!((before.value.expose(), before.version.0.as_str()), (A, "1"));
    assert_eq!(hook.swap().await, Swapped::Applied(Version("2".into())));
    let after = hook.store.get().await.unwrap();
    assert_eq!((after.value.expose(), after.version.0.as_str()), (B, "2"));
    assert_eq!(hook.swap().await, Swapped::NotApplied { found: Some(after.clone()) });
    let read_back = hook.store.read_back(&before.version, &after.value).await.unwrap();
    assert_eq!(read_back, Swapped::Applied(after.version));
}

#[tokio::test]
async fn anything_but_0_with_a_version_and_3_is_ambiguous_and_shows_no_password() {
    for script in [
        "exit 1",
        "exit 0",
        "echo nonsense; exit 0",
        "kill -9 $$",
        "read value; echo \"cannot write $value, password secret-b\" >&2; exit 7",
        "while :; do sleep 1; done",
    ] {
        let hook = Hook::new(script);
        let outcome = hook.swap().await;
        assert!(matches!(outcome, Swapped::Ambiguous { .. }), "{script}: {outcome:?}");
        assert!(!format!("{outcome:?}").contains("secret"), "{outcome:?}");
    }
    assert_eq!(Hook::new("exit 3").swap().await, Swapped::NotApplied { found: None });
}

#[tokio::test]
async fn after_the_time_out_the_hook_and_its_children_are_gone() {
    // The child outlives its parent and keeps the output open.
    let hook = Hook::new("cd \"$1\"; (sleep 60 & echo $! >child; wait) & echo $$ >parent; wait");
    let began = Instant::now();
    assert!(matches!(hook.swap().await, Swapped::Ambiguous { .. }));
    assert!(began.elapsed() < Duration::from_secs(10));
    for file in ["parent", "child"] {
        let pid = std::fs::read_to_string(hook.folder.join(file)).unwrap();
        let status = PathBuf::from(format!("/proc/{}/status", pid.trim()));
        // Who adopts it may be slow to wait for it: a zombie has no memory any more.
        let ends = Instant::now() + Duration::from_secs(10);
        while std::fs::read_to_string(&status).is_ok_and(|status| status.contains("VmRSS")) {
            assert!(Instant::now() < ends, "the {file} lives");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

#[tokio::test]
async fn errors_of_get_show_nothing_of_what_the_hook_said() {
    for script in [
        "echo postgresql://u:secret@h/d >&2; exit 1",
        "echo '{\"value\": \"postgresql://u:secret@h/d\"}'",
        "echo postgresql://u:secret@h/d",
        "sleep 60",
    ] {
        let error = Hook::new(script).store.get().await.unwrap_err();
        let text = service::report(&error, service::Hint::hint(&error));
        assert!(!text.contains("secret"), "{text}");
    }
    let section = service::config::Command { command: vec!["/no/such/hook".into()], timeout_seconds: 1 };
    let error = CommandStore::new(&section).unwrap().get().await.unwrap_err();
    assert!(matches!(error, Error::HookStart { .. }));
}

#[tokio::test]
async fn the_value_is_never_an_argument() {
    let hook = Hook::new(
        "cd \"$1\"; echo \"$*\" >arguments; cat >input; tr '\\0' '\\n' </proc/$$/environ >environment; exit 3",
    );
    hook.swap().await;
    let read = |file: &str| std::fs::read_to_string(hook.folder.join(file)).unwrap();
    assert!(read("arguments").ends_with(" cas 1\n"), "{}", read("arguments"));
    assert_eq!(read("input"), B);
    assert!(!read("arguments").contains("secret") && !read("environment").contains("secret-b"));
}
