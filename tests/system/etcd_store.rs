//! The etcd store against real etcd: concurrent swaps, members that stand still or die, authentication.

use std::time::Duration;

use control::store::etcd::EtcdStore;
use control::store::{ConfigStore, Error, Swapped, Value, Version, Versioned};
use serde_json::json;
use service::Hint;
use tests::etcd::Etcd;

const KEY: &str = "app/database-url";
const A: &str = "postgresql://app:secret-a@source:5432/shop";
const B: &str = "postgresql://app:secret-b@target:5432/shop";
const PASSWORD: &str = "secret-of-etcd";

fn value(text: &str) -> Value {
    Value::new("a test", text).unwrap()
}

fn section(endpoints: Vec<String>) -> service::config::Etcd {
    service::config::Etcd { endpoints, key: KEY.to_owned(), user: None, password: None, timeout_ms: 400 }
}

fn store(etcd: &Etcd, members: usize) -> EtcdStore {
    EtcdStore::new(&section((0..members).map(|member| etcd.endpoint(member)).collect())).unwrap()
}

fn put(etcd: &Etcd, text: &str, token: Option<&str>) {
    use base64::Engine as _;
    let base64 = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    etcd.call("/v3/kv/put", &json!({"key": base64(KEY), "value": base64(text)}), token).unwrap();
}

fn applied(swapped: Swapped) -> Version {
    match swapped {
        Swapped::Applied(version) => version,
        other => panic!("{other:?}"),
    }
}

fn found(swapped: Swapped) -> Versioned {
    match swapped {
        Swapped::NotApplied { found: Some(found) } => found,
        other => panic!("{other:?}"),
    }
}

fn shows_no_secret(error: &Error) -> String {
    let text = service::report(error, error.hint());
    assert!(!text.contains("secret"), "{text}");
    text
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_concurrent_swaps_exactly_one_is_applied() {
    let etcd = Etcd::start(1).unwrap();
    let store = std::sync::Arc::new(store(&etcd, 1));
    assert!(matches!(store.get().await.unwrap_err(), Error::Absent { .. }));
    put(&etcd, A, None);
    for round in 0..10 {
        let before = store.get().await.unwrap();
        let swaps: Vec<_> = (0..16)
            .map(|number| {
                let (store, version) = (store.clone(), before.version.clone());
                let value = value(&format!("postgresql://app:{round}@h/d{number}"));
                tokio::spawn(async move { (store.compare_and_swap(&version, &value).await.unwrap(), value) })
            })
            .collect();
        let (mut winners, mut losers) = (Vec::new(), Vec::new());
        for swap in swaps {
            match swap.await.unwrap() {
                (Swapped::Applied(version), value) => winners.push(Versioned { value, version }),
                (other, _) => losers.push(found(other)),
            }
        }
        assert_eq!((winners.len(), losers.len()), (1, 15));
        // All others were told what won, and so is everybody who asks.
        assert!(losers.iter().all(|found| *found == winners[0]));
        assert_eq!(store.get().await.unwrap(), winners[0]);
        assert_eq!(applied(store.read_back(&before.version, &winners[0].value).await.unwrap()), winners[0].version);
    }
    assert!(matches!(
        store.compare_and_swap(&Version("0".into()), &value(B)).await.unwrap(),
        Swapped::NotApplied { .. }
    ));
    assert!(matches!(
        store.compare_and_swap(&Version("x".into()), &value(B)).await.unwrap(),
        Swapped::NotApplied { .. }
    ));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_swap_that_a_stopped_server_does_not_answer_is_ambiguous_and_read_back_decides_it_for_good() {
    let etcd = Etcd::start(1).unwrap();
    let store = store(&etcd, 1);
    put(&etcd, A, None);
    let (mut came_true, mut did_not) = (0, 0);
    for round in 0..20 {
        let before = store.get().await.unwrap();
        let next = value(&format!("postgresql://app:secret@h/d{round}"));
        etcd.pause(0).unwrap();
        let outcome = store.compare_and_swap(&before.version, &next).await.unwrap();
        assert!(matches!(outcome, Swapped::Ambiguous { .. }), "{outcome:?}");
        assert!(!format!("{outcome:?}").contains("secret"), "{outcome:?}");
        // While it stands still nobody knows: an error, and no guess.
        if round == 0 {
            let error = store.read_back(&before.version, &next).await.unwrap_err();
            assert!(shows_no_secret(&error).contains("no answer in time"));
        }
        etcd.resume(0);
        let decided = store.read_back(&before.version, &next).await.unwrap();
        match &decided {
            Swapped::Applied(_) => came_true += 1,
            Swapped::NotApplied { .. } => did_not += 1,
            Swapped::Ambiguous { why } => panic!("{why}"),
        }
        // The server takes the request up that was in its socket, and whatever becomes of it: what was said stays true.
        let ends = std::time::Instant::now() + Duration::from_millis(200);
        while std::time::Instant::now() < ends {
            let now = store.get().await.unwrap();
            match &decided {
                Swapped::Applied(version) => assert_eq!((&now.value, &now.version), (&next, version)),
                _ => assert_eq!(now.value, before.value),
            }
        }
    }
    println!("came true: {came_true}, did not: {did_not}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_server_has_applied_or_not_is_read_back_after_its_restart() {
    let etcd = Etcd::start(1).unwrap();
    let store = store(&etcd, 1);
    put(&etcd, A, None);
    let before = store.get().await.unwrap();
    etcd.kill(0);
    // Nothing was sent: certain.
    let error = store.compare_and_swap(&before.version, &value(B)).await.unwrap_err();
    assert!(matches!(error, Error::EtcdSilent { .. }), "{error:?}");
    shows_no_secret(&error);
    etcd.start_again(0).unwrap();
    assert_eq!(store.get().await.unwrap(), before);
    let version = applied(store.compare_and_swap(&before.version, &value(B)).await.unwrap());
    etcd.kill(0);
    etcd.start_again(0).unwrap();
    assert_eq!(store.get().await.unwrap(), Versioned { value: value(B), version: version.clone() });
    assert_eq!(store.read_back(&before.version, &value(B)).await.unwrap(), Swapped::Applied(version));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_three_members_one_may_be_gone() {
    let etcd = Etcd::start(3).unwrap();
    put(&etcd, A, None);
    let store = store(&etcd, 3);
    let before = store.get().await.unwrap();
    etcd.kill(0);
    // The member that refuses the connection is passed over. A new leader takes a moment, which is no swap's fault.
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while store.get().await.is_err() {
        assert!(std::time::Instant::now() < deadline, "two of three members elect no leader");
    }
    let version = applied(store.compare_and_swap(&before.version, &value(B)).await.unwrap());
    assert_eq!(store.get().await.unwrap(), Versioned { value: value(B), version });
    // Two gone: no majority. The one that is left does not answer in time, and that is not a no.
    etcd.kill(1);
    let before = before.version;
    assert!(store.get().await.is_err());
    let outcome = store.compare_and_swap(&before, &value(A)).await.unwrap();
    assert!(matches!(outcome, Swapped::Ambiguous { .. }), "{outcome:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_authentication_a_user_of_the_key_swaps_and_others_do_not() {
    let etcd = Etcd::start(1).unwrap();
    let root = etcd.enable_authentication(PASSWORD, "app/").unwrap();
    put(&etcd, A, Some(&root));
    let with = |user: Option<&str>, password: Option<&str>, key: &str| {
        let section = service::config::Etcd {
            user: user.map(str::to_owned),
            password: password.map(str::to_owned),
            key: key.to_owned(),
            ..section(vec![etcd.endpoint(0)])
        };
        assert!(!format!("{section:?}").contains("secret"));
        EtcdStore::new(&section)
    };
    let store = with(Some("app"), Some(PASSWORD), KEY).unwrap();
    assert!(!format!("{store:?}").contains("secret"));
    let before = store.get().await.unwrap();
    let version = applied(store.compare_and_swap(&before.version, &value(B)).await.unwrap());
    // A token of before: users have changed since, and it is not taken any more.
    etcd.call("/v3/auth/user/add", &json!({"name": "another", "password": PASSWORD}), Some(&root)).unwrap();
    assert_eq!(store.get().await.unwrap(), Versioned { value: value(B), version: version.clone() });
    etcd.call("/v3/auth/user/delete", &json!({"name": "another"}), Some(&root)).unwrap();
    let version = applied(store.compare_and_swap(&version, &value(A)).await.unwrap());
    // A server that was started anew knows no token.
    etcd.kill(0);
    etcd.start_again(0).unwrap();
    applied(store.compare_and_swap(&version, &value(B)).await.unwrap());

    for (user, password, key) in
        [(Some("app"), Some("secret-wrong"), KEY), (Some("app"), Some(PASSWORD), "other/key"), (None, None, KEY)]
    {
        let store = with(user, password, key).unwrap();
        for error in
            [store.get().await.unwrap_err(), store.compare_and_swap(&Version("1".into()), &value(A)).await.unwrap_err()]
        {
            assert!(matches!(error, Error::EtcdRefused { .. }), "{error:?}");
            println!("{}", shows_no_secret(&error));
        }
    }
    assert!(matches!(with(Some("app"), None, KEY).unwrap_err(), Error::Section { .. }));
}
