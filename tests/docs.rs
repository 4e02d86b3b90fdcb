//! What the documents claim of the tree.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .to_path_buf()
}

#[test]
fn every_direct_dependency_has_its_reason() {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let reasons = fs::read_to_string(root().join("docs/dependencies.md")).unwrap();
    let table = manifest.split("[workspace.dependencies]").nth(1).unwrap();
    let table = table.split("\n[").next().unwrap();
    let packages: Vec<&str> = table
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once(" = "))
        .map(|(package, _)| package)
        .filter(|package| !package.starts_with("zk-"))
        .collect();
    assert!(packages.len() > 30, "{packages:?}");
    for package in &packages {
        assert!(
            reasons.contains(&format!("`{package}`")),
            "docs/dependencies.md lacks {package}"
        );
    }
    // And the other way round: no reason for what is gone.
    for row in reasons.lines().filter(|line| line.starts_with("| `")) {
        for package in row.split('|').nth(1).unwrap().split(',') {
            let package = package.trim().trim_matches('`');
            assert!(
                packages.contains(&package),
                "docs/dependencies.md still has {package}"
            );
        }
    }
}

#[test]
fn there_are_as_many_vectors_as_the_documents_say() {
    let files = fs::read_dir(root().join("tests/vectors")).unwrap();
    // All but the keys that they share.
    let count = files.count() - 1;
    for (page, says) in [
        ("CHANGELOG.md", "test vectors"),
        ("docs/exercised.md", "vectors,"),
    ] {
        let text = fs::read_to_string(root().join(page)).unwrap();
        assert!(
            text.contains(&format!("{count} {says}")),
            "{page}: not {count}"
        );
    }
}

#[test]
fn links_between_documents_lead_somewhere() {
    let docs = fs::read_dir(root().join("docs"))
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let top = [
        "README.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
        "CHANGELOG.md",
    ];
    let mut links = 0;
    for file in docs.chain(top.iter().map(|name| root().join(name))) {
        let text = fs::read_to_string(&file).unwrap();
        for link in text
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split(')').next())
        {
            if link.starts_with("http") || link.starts_with('#') {
                continue;
            }
            let target = file.parent().unwrap().join(link.split('#').next().unwrap());
            assert!(target.exists(), "{}: no {link}", file.display());
            links += 1;
        }
    }
    assert!(links > 10, "{links}");
}

#[test]
fn every_crate_forbids_unsafe_code_but_those_that_call_c() {
    let mut roots = 0;
    for parent in ["crates", "bins"] {
        for package in fs::read_dir(root().join(parent)).unwrap() {
            let package = package.unwrap().path();
            for file in ["src/lib.rs", "src/main.rs"].map(|file| package.join(file)) {
                let Ok(text) = fs::read_to_string(&file) else {
                    continue;
                };
                let forbids = text.contains("#![forbid(unsafe_code)]");
                let calls_c = package.ends_with("zk-hsm")
                    || package.ends_with("zk-hsm-sim")
                    || file.ends_with("zk-agent/src/lib.rs");
                assert_eq!(forbids, !calls_c, "{}", file.display());
                roots += 1;
            }
        }
    }
    assert!(roots >= 14, "{roots}");
}

/// The tables of a page's configuration reference: the name in the heading, and
/// key and default of each row.
fn reference(page: &str) -> Vec<(String, Vec<(String, String)>)> {
    let text = fs::read_to_string(root().join("docs").join(page)).unwrap();
    let cell = |cell: &str| cell.trim().trim_matches('`').to_owned();
    let mut tables: Vec<(String, Vec<(String, String)>)> = Vec::new();
    for section in text.split("\n### ").skip(1) {
        let heading = section.lines().next().unwrap();
        let name = heading.trim_matches(['`', '[', ']']).to_owned();
        let rows = section.split("\n## ").next().unwrap().lines();
        let rows = rows.filter(|line| line.starts_with("| `"));
        let rows = rows.map(|row| row.split('|').map(cell).collect::<Vec<_>>());
        tables.push((
            name,
            rows.map(|row| (row[1].clone(), row[2].clone())).collect(),
        ));
    }
    assert!(!tables.is_empty(), "{page}");
    tables
}

/// Holds a page to what the program's own parser says: `required` is the least
/// that it takes, `parse` gives the configuration as text, or its error.
fn holds(page: &str, required: &str, parse: impl Fn(&str) -> Result<String, String>) {
    let tables = reference(page);
    // A table that a configuration has none of yet can be added to it.
    let with = |table: &str, line: &str| {
        let heading = format!("[{table}]\n");
        match (table, required.contains(&heading)) {
            ("top", _) => format!("{line}\n{required}"),
            (_, true) => required.replacen(&heading, &format!("{heading}{line}\n"), 1),
            (_, false) => format!("{required}\n{heading}{line}\n"),
        }
    };
    let least = parse(required).unwrap();
    for (table, rows) in tables {
        // The parser says which keys there are.
        let error = parse(&with(&table, "no-such-key = 1")).unwrap_err();
        let (_, expected) = error.rsplit_once("expected ").expect(&error);
        let mut allowed: Vec<_> = expected.split('`').skip(1).step_by(2).collect();
        let mut documented: Vec<_> = rows.iter().map(|(key, _)| key.as_str()).collect();
        allowed.sort_unstable();
        documented.sort_unstable();
        assert_eq!(documented, allowed, "{page}, [{table}]");
        // A default, when it is given, changes nothing.
        for (key, default) in rows {
            match default.as_str() {
                "required" => assert!(required.contains(&key), "{page}: {key}"),
                "none" => {}
                default => {
                    let given = parse(&with(&table, &format!("{key} = {default}"))).unwrap();
                    assert_eq!(given, least, "{page}, [{table}] {key} = {default}");
                }
            }
        }
    }
}

#[test]
fn agent_toml_is_documented_as_it_is_parsed() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("agent.toml");
    let required = "[device]\nid = \"pi-01\"\nhsm = \"zymkey:slot=0\"\ncertificate = \"c.pem\"\n\
                    [target]\nendpoint = \"localhost:8443\"\nroots = \"r.pem\"\n\
                    [owners]\nfiles = [\"o.pem\"]\n[spool]\ndir = \"spool\"\n";
    holds("agent.md", required, |text| {
        fs::write(&file, text).unwrap();
        let config = zk_agent::Config::read(&file).map_err(|error| error.to_string())?;
        Ok(format!("{config:?}"))
    });
}

#[test]
fn gateway_toml_is_documented_as_it_is_parsed() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("gateway.toml");
    let required = "listen = \"127.0.0.1:0\"\nstore = \"file:zk.db\"\n\
                    [tls]\ncertificate = \"c.pem\"\nkey = \"k.pem\"\ndevice-ca = \"d.pem\"\n";
    holds("gateway.md", required, |text| {
        fs::write(&file, text).unwrap();
        let config = zk_gateway::Config::load(&file, zk_gateway::Overrides::default());
        let config = config.map_err(|error| {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            format!("{error} {}", cause.unwrap_or_default())
        })?;
        Ok(format!("{config:?}"))
    });
}

/// Each command of the page, as its program takes it: with `--help` behind it nothing
/// is done, but all before that has to be understood.
#[test]
fn the_way_through_aws_is_typed_as_it_stands() {
    let page = fs::read_to_string(root().join("docs/provisioning.md")).unwrap();
    let programs = std::env::current_exe().unwrap();
    // target/debug/deps/docs-HASH
    let programs = programs.parent().unwrap().parent().unwrap();
    let mut seen = Vec::new();
    for line in page.lines().filter(|line| line.starts_with("    ")) {
        // what it is fed with, and where its output goes, is the shell's
        let command = line.trim().rsplit(" | ").next().unwrap();
        let command = command.split(" > ").next().unwrap();
        let mut words = command.split_whitespace();
        let program = words.next().unwrap();
        if !["zk-setup", "zk-ctl", "zk-agent", "zk-reader"].contains(&program) {
            continue;
        }
        let path = programs.join(program);
        assert!(
            path.exists(),
            "{} is missing: `cargo build --workspace` makes it",
            path.display()
        );
        let output = std::process::Command::new(path)
            .args(words)
            .arg("--help")
            .env_clear()
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command}: {said}");
        seen.push(program.to_owned());
    }
    assert!(seen.len() > 25, "{seen:?}");
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), 4, "{seen:?}");
}

/// What the page says that a program says stands in one.
#[test]
fn what_is_said_to_be_told_is_told() {
    let page = fs::read_to_string(root().join("docs/provisioning.md")).unwrap();
    let table = page.split("| it says | what to do |").nth(1).unwrap();
    let table = table.split("\n\n").next().unwrap();
    let mut sources = String::new();
    for file in [
        "crates/zk-provision/src/error.rs",
        "crates/zk-hsm/src/error.rs",
        "bins/zk-setup/src/aws.rs",
        "bins/zk-setup/src/question.rs",
    ] {
        let text = fs::read_to_string(root().join(file)).unwrap();
        // a text may go on in the next line
        let lines = text.split("\\\n").map(str::trim_start);
        sources.push_str(&lines.collect::<String>());
    }
    let mut rows = 0;
    for row in table.lines().filter(|row| row.starts_with("| `")) {
        let said = row.split('`').nth(1).unwrap();
        assert!(sources.contains(said), "nothing says {said:?}");
        rows += 1;
    }
    assert!(rows > 20, "{rows}");
}
