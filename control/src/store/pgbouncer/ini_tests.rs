//! Tables of cases: what is found, and that nothing but the entry changes.

use super::*;

const INI: &str = "; a comment with [databases] and shop = host=x\n\
    [databases]\n\
    # shop = host=commented\n\
    shop = host=source port=5432 dbname=shop_old pool_size=7 connect_query='SELECT ''a = b'''  \r\n\
    shop_2 = host=source\n\
    \"Odd \"\"name\"\"\" =host = '/var/run/my sockets' user=u password='it''s'\n\
    * = host=fallback\n\
    \n\
    [pgbouncer]\n\
    shop = host=elsewhere\n\
    %include other.ini\n\
    listen_port = 6432";

fn target() -> Address {
    Address {
        host: Some("target".into()),
        port: "6000".into(),
        database: "shop new".into(),
        user: Some("v".into()),
        password: Some("a b'c".into()),
    }
}

fn rewritten(text: &str, database: &str, address: &Address) -> String {
    Entry::find(text, database).unwrap().rewritten(text, address).unwrap()
}

#[test]
fn only_the_address_of_the_entry_changes() {
    let changed = rewritten(INI, "shop", &target());
    let expected = INI.replace(
        "host=source port=5432 dbname=shop_old pool_size=7",
        "host=target port=6000 dbname='shop new' pool_size=7",
    );
    assert_eq!(changed, expected);
    let entry = Entry::find(&changed, "shop").unwrap();
    // User and password would have become those of every client.
    assert_eq!(entry.address(), Address { user: None, password: None, ..target() });
    // And back again, byte for byte.
    let before = Entry::find(INI, "shop").unwrap().address();
    assert_eq!(rewritten(&changed, "shop", &before), INI);
}

#[test]
fn what_an_entry_leaves_out_is_added_only_where_the_default_is_another() {
    let changed = rewritten(INI, "shop_2", &target());
    assert!(changed.contains("\nshop_2 = host=target port=6000 dbname='shop new'\n"), "{changed}");
    let default = Address { port: "5432".into(), database: "shop_2".into(), ..target() };
    assert!(rewritten(INI, "shop_2", &default).contains("\nshop_2 = host=target\n"));
    assert_eq!(
        rewritten("[databases]\na =\n", "a", &Address { database: "a".into(), ..default }),
        "[databases]\na = host=target\n"
    );
}

#[test]
fn quoted_names_and_values_are_understood() {
    let entry = Entry::find(INI, "Odd \"name\"").unwrap();
    let address = entry.address();
    assert_eq!(address.host.as_deref(), Some("/var/run/my sockets"));
    assert_eq!((address.user.as_deref(), address.password.as_deref()), (Some("u"), Some("it's")));
    assert_eq!((address.port.as_str(), address.database.as_str()), ("5432", "Odd \"name\""));
    assert!(!entry.without_password().contains("it's") && !format!("{address} {address:?}").contains("it's"));
    let changed = rewritten(INI, "Odd \"name\"", &target());
    assert!(changed.contains("=host = target user=v password='a b''c' port=6000 dbname='shop new'\n"), "{changed}");
    assert_eq!(Entry::find(&changed, "Odd \"name\"").unwrap().address(), target());
}

#[test]
fn what_is_missing_double_or_malformed_is_told_by_its_line() {
    for database in ["nosuch", "*x", "elsewhere", "listen_port"] {
        assert_eq!(Entry::find(INI, database).unwrap_err(), Fault::NoEntry);
    }
    for text in [
        "[databases]\na = host=h\na = host=i\n",
        "[databases]\n\na = host=\n",
        "[databases]\n\na = host='h\n",
        "[databases]\n\na = h\n",
    ] {
        let Fault::Line { line: 3, .. } = Entry::find(text, "a").unwrap_err() else { panic!("{text}") };
    }
    let wrong = Address { host: Some("a\nb".into()), ..target() };
    assert!(matches!(Entry::find(INI, "shop").unwrap().rewritten(INI, &wrong), Err(Fault::Line { line: 4, .. })));
}
