//! The validator's page of HTML, made from real databases and looked at in a real browser: light and dark, on a telephone and on a wide
//! screen. Pictures of it are left in `target/tmp/page`.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use serde_json::Value as Json;
use tests::browser::{Browser, View, address};
use tests::stack::Migration;
use tests::{scratch, services};

/// Names that would like to be markup, or to turn the line around.
const HOSTILE: &str = "<script>document.title='taken'</script>\u{202e}\"'&";
const VIEWS: [View; 4] = [
    View { width: 375, height: 812, dark: false },
    View { width: 375, height: 812, dark: true },
    View { width: 1600, height: 1000, dark: false },
    View { width: 1600, height: 1000, dark: true },
];

const TABLES: &str = "
CREATE TYPE state AS ENUM ('new', 'paid', 'packed', 'sent', 'returned');
CREATE TABLE orders (id int PRIMARY KEY, customer text, email text, state state, price numeric, weight float8, placed_at timestamptz,
  delivered_on date, at_door time, paid boolean, note text, doc jsonb, reference uuid);
INSERT INTO orders SELECT i, (ARRAY['Zoë', 'José', 'Łukasz', 'Anna', 'Émile'])[1 + i % 5] || ' ' || i, 'a' || i || '@example.com  ',
  (ARRAY['new', 'paid', 'packed', 'sent', 'returned'])[1 + (i * i) % 5]::state, (i % 97) * 1.2345 + (i % 13) * 10, sqrt(i) * 1.1,
  '2024-01-01 08:00+00'::timestamptz + i * interval '97 minutes', '2024-01-01'::date + i % 366, '06:00'::time + (i % 700) * interval '71 seconds',
  i % 3 > 0, CASE WHEN i % 10 = 0 THEN '' WHEN i % 7 > 0 THEN repeat('word ', 1 + i % 40) || i END, jsonb_build_object('n', i, 'tags', ARRAY[i % 3]),
  md5(i::text)::uuid FROM generate_series(1, 3000) AS i;
CREATE INDEX orders_placed_at ON orders (placed_at);
CREATE TABLE accounts (id int PRIMARY KEY, owner text, cents bigint);
INSERT INTO accounts SELECT i, 'owner ' || i, 100 * (i % 50) FROM generate_series(1, 400) AS i;
CREATE TABLE events (at timestamptz, what text);
INSERT INTO events SELECT '2024-01-01'::timestamptz + i * interval '1 hour', 'event ' || i FROM generate_series(1, 100) AS i;
CREATE TABLE sessions (region text, id int, value text, PRIMARY KEY (region, id));
INSERT INTO sessions SELECT 'eu-' || i % 3, i, md5(i::text) FROM generate_series(1, 200) AS i;
";

const CORRUPT: &str = "
UPDATE orders SET customer = normalize(customer, NFD) WHERE id % 4 = 0;
UPDATE orders SET email = rtrim(email) WHERE id % 9 = 0;
UPDATE orders SET state = 'returned' WHERE state = 'sent' AND id % 2 = 0;
UPDATE orders SET price = round(price, 2);
UPDATE orders SET placed_at = placed_at + interval '5 hours 30 minutes';
UPDATE orders SET note = NULL WHERE note = '';
UPDATE orders SET note = left(note, 60) WHERE length(note) > 60;
UPDATE orders SET weight = weight * 100 WHERE id > 1500;
DELETE FROM orders WHERE id IN (17, 18, 2500);
INSERT INTO orders (id, customer) VALUES (900001, 'nobody');
DROP INDEX orders_placed_at;
ALTER TABLE accounts ALTER owner TYPE varchar(60);
UPDATE events SET what = upper(what) WHERE what LIKE 'event 3%';
UPDATE sessions SET value = CASE id WHEN 5 THEN md5('8') ELSE md5('5') END WHERE id IN (5, 8);
";

fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// One table that is wrong in many ways, some that are in one, one with a hostile name, many that are right.
fn corrupted() -> Migration {
    let migration = Migration::shared("page").unwrap();
    let (source, target) = (migration.source().unwrap(), migration.target().unwrap());
    let hostile = format!(
        "CREATE TABLE {name} (id text PRIMARY KEY, {name} text); INSERT INTO {name} VALUES ({text}, {text}), ('<img src=x onerror=alert(1)>', 'plain');",
        name = identifier(&HOSTILE.replace("document.title='taken'", "taken()")),
        text = literal(HOSTILE)
    );
    let many: String = (0..40).map(|at| format!("CREATE TABLE right_{at:02} (id int PRIMARY KEY); INSERT INTO right_{at:02} SELECT generate_series(1, 10);")).collect();
    for session in [&source, &target] {
        session.run("SET TimeZone TO 'UTC'").unwrap();
        session.run(&format!("{TABLES}{hostile}{many}")).unwrap();
    }
    target.run(CORRUPT).unwrap();
    let name = identifier(&HOSTILE.replace("document.title='taken'", "taken()"));
    target
        .run(&format!("UPDATE {name} SET {name} = '</td></table><script>document.title=''taken''</script>' || {name}"))
        .unwrap();
    source.run("CREATE TABLE only_here (i int)").unwrap();
    migration
}

fn check(migration: &Migration, code: i32, arguments: &[&str]) -> PathBuf {
    let html = scratch::folder("page").unwrap().join("report.html");
    let fixed = ["check", "--html", html.to_str().unwrap()];
    let said =
        services::run("validator", &migration.config(), fixed.into_iter().chain(arguments.iter().copied())).unwrap();
    said.expect_code(code).unwrap();
    html
}

/// What a view of a page is measured by. Contrast is that of WCAG 2, of every text that is shown, over the nearest background.
const MEASURE: &str = r##"
const doc = document.documentElement;
const parse = text => (text.match(/[\d.]+/g) || []).map(Number);
const luminance = ([r, g, b]) => [r, g, b].map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
  .reduce((sum, v, at) => sum + v * [0.2126, 0.7152, 0.0722][at], 0);
const background = element => {
  for (let at = element; at; at = at.parentElement) {
    const color = parse(getComputedStyle(at).backgroundColor);
    if (color.length === 3 || color[3] > 0.99) return color;
  }
  return [255, 255, 255];
};
const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
let worst = { ratio: 99 }, smallest = { size: 99 };
while (texts.nextNode()) {
  const element = texts.currentNode.parentElement;
  if (!texts.currentNode.data.trim() || !element.checkVisibility() || ['title', 'desc'].includes(element.tagName)) continue;
  const style = getComputedStyle(element), svg = element.closest('svg');
  const a = luminance(parse(svg ? style.fill : style.color)), b = luminance(background(element));
  const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  if (ratio < worst.ratio) worst = { ratio, text: element.textContent.slice(0, 60), tag: element.tagName, name: element.getAttribute('class') };
  const scale = svg ? svg.getBoundingClientRect().width / svg.viewBox.baseVal.width : 1;
  const size = parseFloat(style.fontSize) * scale;
  if (size < smallest.size) smallest = { size, text: element.textContent.slice(0, 60) };
}
const heading = document.querySelector('h1').getBoundingClientRect(), meaning = document.querySelector('.meaning').getBoundingClientRect();
const plots = [...document.querySelectorAll('svg.plot')].filter(plot => plot.checkVisibility());
const levels = [...document.querySelectorAll('h1,h2,h3,h4')].map(h => Number(h.tagName[1]));
const ids = [...document.querySelectorAll('[id]')].map(e => e.id);
return {
  overflow: Math.max(doc.scrollWidth, document.body.scrollWidth) - doc.clientWidth,
  width: doc.clientWidth, height: doc.scrollHeight, fold: innerHeight,
  heading: document.querySelector('h1').textContent, meaning: meaning.bottom, top: heading.top,
  paper: getComputedStyle(document.body).backgroundColor,
  worst, smallest,
  plots: plots.map(plot => { const box = plot.getBoundingClientRect(); return [box.width, box.height, plot.querySelectorAll('rect.source, rect.target').length] }),
  undescribed: [...document.querySelectorAll('svg')].filter(svg => svg.getAttribute('aria-hidden') !== 'true' && !(svg.querySelector(':scope > title') && svg.querySelector(':scope > desc'))).length,
  scopeless: [...document.querySelectorAll('th:not([scope])')].length,
  headings: levels.filter(level => level === 1).length === 1 && levels.every((level, at) => at === 0 || level - levels[at - 1] <= 1),
  language: doc.lang, repeated: ids.length - new Set(ids).size, foreign: document.querySelectorAll('script, img, iframe, object, [onclick], [onerror]').length,
  broken: [...document.querySelectorAll('a[href^="#"]')].filter(a => !document.querySelector(a.getAttribute('href'))).length,
  title: document.title,
};
"##;

/// One at a time: each is a browser of some hundred megabytes.
static LOOKING: Mutex<()> = Mutex::new(());

fn pictures() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("page");
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// Opens the page and measures it in every view.
fn look(browser: &Browser, page: &Path, name: &str) {
    std::fs::copy(page, pictures().join(format!("{name}.html"))).unwrap();
    browser.requests().unwrap();
    browser.open(page).unwrap();
    for view in VIEWS {
        let named = format!("{name}-{}-{}", view.width, if view.dark { "dark" } else { "light" });
        browser.look(view).unwrap();
        let seen = browser.run(MEASURE).unwrap();
        browser.picture(&pictures().join(format!("{named}.png")), None).unwrap();
        browser.picture(&pictures().join(format!("{named}-whole.png")), Some(9_000)).unwrap();
        judge(&named, view, &seen);
    }
    let asked = browser.requests().unwrap();
    let elsewhere: Vec<&String> =
        asked.iter().filter(|url| **url != address(page) && !url.starts_with("data:")).collect();
    assert!(asked.contains(&address(page)) && elsewhere.is_empty(), "{asked:?}");
    let said = browser.console().unwrap();
    assert!(said.is_empty(), "{said:?}");
}

fn judge(named: &str, view: View, seen: &Json) {
    let number = |path: &str| seen.pointer(path).and_then(Json::as_f64).unwrap();
    assert_eq!(number("/width"), f64::from(view.width), "{named}");
    assert!(number("/overflow") <= 0.0, "{named}: the page is {} px too wide", number("/overflow"));
    assert!(
        number("/top") >= 0.0 && number("/meaning") <= number("/fold"),
        "{named}: the verdict is below the fold: {seen}"
    );
    assert!(number("/worst/ratio") >= 4.5, "{named}: contrast: {}", seen["worst"]);
    assert!(number("/smallest/size") >= 9.0, "{named}: letters: {}", seen["smallest"]);
    let paper: Vec<u32> = seen["paper"]
        .as_str()
        .unwrap()
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|part| part.parse().ok())
        .collect();
    assert_eq!(paper[0] < 128, view.dark, "{named}: {paper:?}");
    for plot in seen["plots"].as_array().unwrap() {
        let at = |at: usize| plot[at].as_f64().unwrap();
        assert!(at(0) > 250.0 && at(1) > 40.0 && at(2) >= 1.0, "{named}: a plot is {plot}");
    }
    for nothing in ["undescribed", "scopeless", "repeated", "foreign", "broken"] {
        assert_eq!(seen[nothing], 0, "{named}: {nothing}: {seen}");
    }
    assert_eq!((&seen["headings"], &seen["language"]), (&true.into(), &"en".into()), "{named}");
    assert!(!seen["title"].as_str().unwrap().starts_with("taken"), "{named}");
}

fn text(browser: &Browser) -> String {
    browser.run("return document.body.textContent").unwrap().as_str().unwrap().to_owned()
}

#[test]
fn the_report_of_corrupted_tables_is_legible_in_every_view() {
    let migration = corrupted();
    let shown = check(&migration, 1, &["--show-values"]);
    let masked = check(&migration, 1, &[]);
    let _one = LOOKING.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let browser = Browser::start().unwrap();
    look(&browser, &shown, "mismatch");
    let plots = browser
        .run("return [...document.querySelectorAll('svg.plot')].filter(plot => plot.checkVisibility()).length")
        .unwrap();
    assert!(plots.as_u64().unwrap() >= 6, "{plots}");
    let said = text(&browser);
    for words in [
        "Mismatch",
        "dflux resync public.orders --rows",
        "Rounded to fewer places",
        "All examined rows are off by the same amount",
        "Accented letters were taken apart",
        "An index is missing",
        "tables match",
        "U+0065 U+0308",
        // A name is a text, and what would turn its line around is named.
        "<script>taken()</script>⟨U+202E⟩",
        "<img src=x onerror=alert(1)>",
    ] {
        assert!(said.contains(words), "{words}");
    }
    assert!(!said.contains('\u{202e}'));
    // The worst table is the first, and what is equal is folded.
    let first = browser.run("return document.querySelector('details.table h2').textContent").unwrap();
    assert_eq!(first, "public.orders");
    let folded = browser
        .run("return [...document.querySelectorAll('details.table.match')].every(table => !table.open)")
        .unwrap();
    assert_eq!(folded, true);
    look(&browser, &masked, "masked");
    let said = text(&browser);
    assert!(
        said.contains("numeric, ") && !said.contains("nobody") && !said.contains("José"),
        "a value is on a page that masks them"
    );
}

#[test]
fn a_match_and_a_check_that_proves_nothing_say_so_at_the_head() {
    let migration = Migration::shared("calm").unwrap();
    for session in [migration.source().unwrap(), migration.target().unwrap()] {
        session.run("CREATE TABLE a (i int PRIMARY KEY, v text); INSERT INTO a SELECT i, 'v' || i FROM generate_series(1, 500) AS i; CREATE TABLE b (LIKE a); INSERT INTO b SELECT * FROM a").unwrap();
    }
    let equal = check(&migration, 0, &[]);
    let unproved = check(&migration, 2, &["--levels", "0,1"]);
    let none = Migration::shared("none").unwrap();
    let nothing = check(&none, 2, &[]);
    let _one = LOOKING.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let browser = Browser::start().unwrap();
    for (page, name, words) in [
        (&equal, "match", "The target is equal to the source. All 2 tables"),
        (&unproved, "inconclusive", "equality is not proved"),
        (&nothing, "nothing", "No table is selected"),
    ] {
        look(&browser, page, name);
        assert!(text(&browser).contains(words), "{words}");
    }
}

#[test]
fn the_page_of_the_whole_catalogue_of_corruptions_explains_every_cause() {
    let checked = super::corruption::checked();
    let causes: std::collections::BTreeSet<&str> = checked.public.1["tables"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|table| table["findings"].as_array().unwrap())
        .filter_map(|finding| finding["cause"].as_str())
        .collect();
    assert!(causes.len() > 60, "{causes:?}");
    let readme = std::fs::read_to_string(tests::cache::checkout().join("README.md")).unwrap();
    let unexplained: Vec<&&str> = causes.iter().filter(|cause| !readme.contains(&format!("`{cause}`"))).collect();
    assert!(unexplained.is_empty(), "{unexplained:?}");
    let page = check(&checked.migration, 1, &[]);
    let _one = LOOKING.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let browser = Browser::start().unwrap();
    look(&browser, &page, "catalogue");
    let tables = browser.run("return document.querySelectorAll('details.table.mismatch').length").unwrap();
    assert!(tables.as_u64().unwrap() > 100, "{tables}");
}
