//! `cargo xtask package`: the programs as Debian packages.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::lambda::{self, Arch, Needs};
use crate::test::{aws_packages, aws_path, cargo_command, finish, system_programs, workspace_root};

/// What is installed together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Package {
    /// zk-agent and zk-ctl: for a device.
    Agent,
    /// zk-gateway: for a server of one's own.
    Gateway,
    /// zk-setup and zk-reader, and the function for AWS: for operator and owner.
    Tools,
}

impl Package {
    pub(crate) const ALL: [Self; 3] = [Self::Agent, Self::Gateway, Self::Tools];

    /// As Debian calls it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Agent => "zk-agent",
            Self::Gateway => "zk-gateway",
            Self::Tools => "zk-tools",
        }
    }

    /// Whose manifest describes it, then what else is in it.
    fn programs(self) -> &'static [&'static str] {
        match self {
            Self::Agent => &["zk-agent", "zk-ctl"],
            Self::Gateway => &["zk-gateway"],
            Self::Tools => &["zk-setup", "zk-reader"],
        }
    }
}

/// Builds these packages, or all, for these architectures, or both, and says where
/// they are and how large.
pub(crate) fn run(packages: &[Package], archs: &[Arch]) -> Result<()> {
    for package in build(&workspace_root()?, packages, archs)? {
        let size = fs::metadata(&package)?.len();
        println!("{}: {:.2} MB", package.display(), size as f64 / 1e6);
    }
    Ok(())
}

/// Builds them.
pub(crate) fn build(root: &Path, packages: &[Package], archs: &[Arch]) -> Result<Vec<PathBuf>> {
    let packages = if packages.is_empty() {
        &Package::ALL
    } else {
        packages
    };
    let archs = if archs.is_empty() { &Arch::ALL } else { archs };
    system_programs(&[("dpkg-deb --version", "dpkg")])?;
    aws_packages(root)?;
    let cargo_deb = cargo_deb(root)?;
    manuals(root)?;
    if packages.contains(&Package::Tools) {
        // Whichever it is that one's functions run on.
        for arch in Arch::ALL {
            lambda::build(root, arch)?;
        }
    }
    let out = root.join("target/package");
    let mut built = Vec::new();
    for &arch in archs {
        programs(root, packages, arch)?;
        for package in packages {
            let mut deb = Command::new(&cargo_deb);
            deb.current_dir(root)
                .args(["--no-build", "--no-strip", "--locked", "--quiet"])
                .args(["--profile", PROFILE, "--target", arch.triple()])
                .args(["--package", package.programs()[0], "--output"])
                .arg(&out);
            // Nothing in a package is newer than what it was made of.
            finish(&mut deb)?;
            let version = env!("CARGO_PKG_VERSION");
            let name = format!("{}_{version}-1_{}.deb", package.name(), arch.debian());
            let file = out.join(name);
            ensure!(file.exists(), "cargo-deb has made no {}", file.display());
            built.push(file);
        }
    }
    Ok(built)
}

/// Builds the programs in `packages` for `arch`, and sees that they run on old
/// systems as well.
fn programs(root: &Path, packages: &[Package], arch: Arch) -> Result<()> {
    lambda::standard_library(root, arch)?;
    let (major, minor) = GLIBC;
    let mut build = Command::new(root.join("target/venv-aws/bin/cargo-zigbuild"));
    build
        .current_dir(root)
        .env("PATH", aws_path(root)?)
        .env("CARGO_ZIGBUILD_CACHE_DIR", root.join("target/zigbuild"))
        .args(["zigbuild", "--locked", "--profile", PROFILE, "--target"])
        .arg(format!("{}.{major}.{minor}", arch.triple()));
    let programs = || packages.iter().flat_map(|package| package.programs());
    for program in programs() {
        build.args(["--package", program, "--bin", program]);
    }
    finish(&mut build)?;
    let directory = root.join("target").join(arch.triple()).join(PROFILE);
    for program in programs() {
        let path = directory.join(program);
        let bytes = fs::read(&path).with_context(|| format!("there is no {}", path.display()))?;
        Needs::of(&bytes)?
            .check(arch, GLIBC)
            .with_context(|| (*program).to_owned())?;
    }
    Ok(())
}

/// Man pages and completions of all programs, in target/manuals.
fn manuals(root: &Path) -> Result<()> {
    let out = root.join("target/manuals");
    if out.exists() {
        fs::remove_dir_all(&out)?;
    }
    // With the programs' command lines in it, xtask takes minutes to build.
    finish(
        cargo_command(root)
            .args(["run", "--locked", "--quiet", "--package", "xtask"])
            .args(["--features", "manuals", "--", "manuals"])
            .arg(&out),
    )
}

/// What makes a package of programs and a manifest.
fn cargo_deb(root: &Path) -> Result<PathBuf> {
    let tools = root.join("target/tools");
    let program = tools.join("bin/cargo-deb");
    let output = Command::new(&program).arg("--version").output();
    let there = output.is_ok_and(|output| {
        let version = String::from_utf8_lossy(&output.stdout);
        version.trim().trim_start_matches("cargo-deb ") == CARGO_DEB
    });
    if !there {
        finish(
            cargo_command(root)
                .args(["install", "--locked", "--quiet", "--root"])
                .arg(&tools)
                .args(["cargo-deb", "--version", CARGO_DEB]),
        )?;
    }
    Ok(program)
}

/// Which of cargo-deb's versions.
const CARGO_DEB: &str = "3.8.0";

/// Small and quick, as `cargo xtask bench agent` measures it.
const PROFILE: &str = "dist";

/// The C library of Debian 11, and of Raspberry Pi OS of that time.
const GLIBC: (u32, u32) = (2, 31);
