//! The schema as PostgreSQL's own pg_dump and pg_restore write it. Nothing is written to a file.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use service::session::Address;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::archive::{self, Entry};
use crate::Error;
use crate::tables::Table;

/// The folder of PostgreSQL's programs; the only place that is looked at when it is set.
pub const BINARIES: &str = "DFLUX_PG_BIN";
const DEBIAN: &str = "/usr/lib/postgresql";
/// A schema, without data: more than this is none that pg_restore could order.
const ARCHIVE_BYTES_MAX: usize = 1 << 30;

/// Both sections, each in the order in which it must be run.
#[derive(Clone, Debug, Default)]
pub struct Dump {
    pub pre: Vec<Entry>,
    pub post: Vec<Entry>,
}

/// The folder of a pg_dump that knows the source's version: it may be newer, never older.
///
/// # Errors
/// `NoProgram`.
pub async fn programs(source_major: i32) -> Result<PathBuf, Error> {
    let mut looked = Vec::new();
    if let Some(folder) = std::env::var_os(BINARIES) {
        looked.push(PathBuf::from(folder));
    } else {
        looked.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
        let mut versions: Vec<(i32, PathBuf)> = std::fs::read_dir(DEBIAN)
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
            .collect();
        // The oldest that is new enough: a newer one writes settings that an older target does not know.
        versions.sort();
        looked.extend(versions.into_iter().map(|(_, path)| path));
    }
    for folder in &looked {
        if folder.join("pg_restore").exists() && version(&folder.join("pg_dump")).await >= Some(source_major) {
            return Ok(folder.clone());
        }
    }
    let looked = looked.iter().map(|folder| folder.display().to_string()).collect::<Vec<_>>().join(", ");
    Err(Error::NoProgram { program: "pg_dump", needed: source_major, looked })
}

/// The major version that a program names, `None` where there is no such program.
async fn version(program: &Path) -> Option<i32> {
    let output = Command::new(program).arg("--version").stdin(Stdio::null()).output().await.ok()?;
    major(&String::from_utf8_lossy(&output.stdout))
}

fn major(text: &str) -> Option<i32> {
    let number = text.split_once("(PostgreSQL) ")?.1;
    number.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// Dumps the schema of the source. Tables that are neither moved nor readable are not even asked for.
///
/// # Errors
/// `Program` with its own words, `Archive`.
pub async fn read(folder: &Path, url: &str, all: &[Table], selected: &[&Table]) -> Result<Dump, Error> {
    let mut dump = Command::new(folder.join("pg_dump"));
    dump.args(["--format=custom", "--compress=0", "--section=pre-data", "--section=post-data", "--no-sync"]);
    dump.args(["--no-owner", "--no-privileges", "--no-publications", "--no-subscriptions", "--no-tablespaces"]);
    // Large objects are not moved: without this, empty ones would be made before the data.
    dump.args(["--no-security-labels", "--no-blobs", "--exclude-schema=dflux", "--lock-wait-timeout=60s"]);
    let moved: std::collections::HashSet<u32> = selected.iter().map(|table| table.oid).collect();
    for table in all.iter().filter(|table| !table.readable && !moved.contains(&table.oid)) {
        dump.arg(format!("--exclude-table={}", table.name.quoted()));
    }
    connect(&mut dump, url)?;
    let archive = run(dump, "pg_dump", &[]).await?;
    let mut sections = Vec::new();
    for section in ["--section=pre-data", "--section=post-data"] {
        let mut restore = Command::new(folder.join("pg_restore"));
        restore.args(["--verbose", "--file=-", "--no-owner", "--no-privileges", section]);
        let text = run(restore, "pg_restore", &archive).await?;
        sections.push(archive::parse(&String::from_utf8_lossy(&text))?);
    }
    let post = sections.pop().unwrap_or_default();
    Ok(Dump { pre: sections.pop().unwrap_or_default(), post })
}

/// The password goes by the environment: arguments are seen by every user of the machine.
fn connect(command: &mut Command, url: &str) -> Result<(), Error> {
    let address = Address::parse("source", url)?;
    if let Some(password) = address.config.get_password() {
        command.env("PGPASSWORD", String::from_utf8_lossy(password).into_owned());
    }
    command.env("PGAPPNAME", "dflux pg_dump").env("PGCLIENTENCODING", "UTF8").env("PGCONNECT_TIMEOUT", "10");
    command.env("LC_ALL", "C.UTF-8").env_remove("PGOPTIONS");
    command.arg("--dbname").arg(without_password(url));
    Ok(())
}

/// The URL without its password, byte for byte otherwise. `Address::parse` has accepted it.
fn without_password(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, tail) = rest.split_at(end);
    match authority.rsplit_once('@') {
        Some((login, host)) => {
            let user = login.split_once(':').map_or(login, |(user, _)| user);
            format!("{scheme}://{user}@{host}{tail}")
        }
        None => url.to_owned(),
    }
}

async fn run(mut command: Command, program: &str, input: &[u8]) -> Result<Vec<u8>, Error> {
    let failed = |message: String| Error::Program { program: program.to_owned(), message };
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().map_err(|error| failed(error.to_string()))?;
    let mut stdin = child.stdin.take();
    let feed = async {
        if let Some(stdin) = &mut stdin {
            // A program that ends early says why itself.
            let _ = stdin.write_all(input).await;
        }
        drop(stdin.take());
    };
    let ((), output) = tokio::join!(feed, child.wait_with_output());
    let output = output.map_err(|error| failed(error.to_string()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let words: Vec<&str> = said.lines().filter(|line| line.contains("error")).take(5).collect();
        let words = if words.is_empty() { said.lines().take(5).collect() } else { words };
        return Err(failed(words.join("; ")));
    }
    if output.stdout.len() > ARCHIVE_BYTES_MAX {
        return Err(failed(format!("wrote {} bytes for a schema", output.stdout.len())));
    }
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_read_from_what_the_program_says() {
        assert_eq!(major("pg_dump (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n"), Some(15));
        assert_eq!(major("pg_dump (PostgreSQL) 18beta1\n"), Some(18));
        assert_eq!(major("nonsense"), None);
    }

    #[test]
    fn no_password_stands_among_the_arguments() {
        for (url, bare) in [
            ("postgresql://u:p%40@h:1/d?sslmode=require", "postgresql://u@h:1/d?sslmode=require"),
            ("postgresql://u@h/d", "postgresql://u@h/d"),
            ("postgresql://h/d?x=@:", "postgresql://h/d?x=@:"),
            ("postgresql://u:a@b:c@h/d", "postgresql://u@h/d"),
        ] {
            assert_eq!(without_password(url), bare);
        }
    }
}
