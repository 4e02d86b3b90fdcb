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
fn every_crate_forbids_unsafe_code_but_the_one_for_chips() {
    let mut roots = 0;
    for parent in ["crates", "bins"] {
        for package in fs::read_dir(root().join(parent)).unwrap() {
            let package = package.unwrap().path();
            for file in ["src/lib.rs", "src/main.rs"].map(|file| package.join(file)) {
                let Ok(text) = fs::read_to_string(&file) else {
                    continue;
                };
                let forbids = text.contains("#![forbid(unsafe_code)]");
                assert_eq!(forbids, !package.ends_with("zk-hsm"), "{}", file.display());
                roots += 1;
            }
        }
    }
    assert!(roots >= 14, "{roots}");
}
