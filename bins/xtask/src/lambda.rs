//! `cargo xtask lambda`: the verifier as what AWS Lambda takes.

use std::env;
use std::fs;
use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use object::Endianness;
use object::elf::{self, FileHeader64};
use object::read::elf::{FileHeader, ProgramHeader};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, DateTime, ZipWriter};

use crate::test::{aws_packages, aws_path, finish, workspace_root};

/// On what a program runs that is not for this machine alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Arch {
    /// Raspberry Pi; and Graviton, for which Lambda takes less.
    Arm64,
    /// Intel and AMD.
    #[value(name = "x86_64", alias = "amd64")]
    X86_64,
}

impl Arch {
    pub(crate) const ALL: [Self; 2] = [Self::Arm64, Self::X86_64];

    /// That of this machine, which can run it.
    pub(crate) fn host() -> Result<Self> {
        match env::consts::ARCH {
            "aarch64" => Ok(Self::Arm64),
            "x86_64" => Ok(Self::X86_64),
            other => bail!("AWS Lambda runs no {other}, and this machine nothing else"),
        }
    }

    /// As Lambda calls it.
    fn name(self) -> &'static str {
        match self {
            Self::Arm64 => "arm64",
            Self::X86_64 => "x86_64",
        }
    }

    /// As Debian calls it.
    pub(crate) fn debian(self) -> &'static str {
        match self {
            Self::Arm64 => "arm64",
            Self::X86_64 => "amd64",
        }
    }

    /// As Rust calls it.
    pub(crate) fn triple(self) -> &'static str {
        match self {
            Self::Arm64 => "aarch64-unknown-linux-gnu",
            Self::X86_64 => "x86_64-unknown-linux-gnu",
        }
    }

    /// As ELF calls it.
    fn machine(self) -> elf::Machine {
        match self {
            Self::Arm64 => elf::EM_AARCH64,
            Self::X86_64 => elf::EM_X86_64,
        }
    }
}

/// Builds the zip for `arch`, and says where it is and how large.
pub(crate) fn run(arch: Arch) -> Result<()> {
    let zip = build(&workspace_root()?, arch)?;
    let size = fs::metadata(&zip)?.len();
    println!("{}: {:.2} MB", zip.display(), size as f64 / 1e6);
    Ok(())
}

/// Builds the zip for `arch`.
///
/// The C library that it is linked with is Zig's copy of the headers and symbols
/// of the one that Lambda has, whatever this machine's own is.
pub(crate) fn build(root: &Path, arch: Arch) -> Result<PathBuf> {
    aws_packages(root)?;
    standard_library(root, arch)?;
    let directory = root.join("target/lambda");
    let (major, minor) = GLIBC;
    let mut build = Command::new(root.join("target/venv-aws/bin/cargo-lambda"));
    build
        .current_dir(root)
        .env("PATH", aws_path(root)?)
        // what it makes for Zig's sake names the Zig of this tree
        .env("CARGO_ZIGBUILD_CACHE_DIR", root.join("target/zigbuild"))
        .args(["lambda", "build", "--locked", "--profile", "dist"])
        .args(["--package", PACKAGE, "--target"])
        .arg(format!("{}.{major}.{minor}", arch.triple()))
        // the profile says how to optimise, and this function the target
        .args(["--disable-optimizations", "--skip-target-check"])
        .arg("--lambda-dir")
        .arg(directory.join(arch.name()));
    finish(&mut build)?;

    let bootstrap = directory.join(arch.name()).join(PACKAGE).join("bootstrap");
    let program = fs::read(&bootstrap)
        .with_context(|| format!("cargo-lambda has made no {}", bootstrap.display()))?;
    Needs::of(&program)?.check(arch, GLIBC)?;
    write(
        &directory.join(format!("{PACKAGE}-{}.zip", arch.name())),
        &program,
    )
}

/// A zip of the program that `cargo test` has built: for this machine, and not
/// for Lambda.
pub(crate) fn zip_of_tests(root: &Path) -> Result<PathBuf> {
    let program = root.join("target/debug").join(PACKAGE);
    let program = fs::read(&program)
        .with_context(|| format!("cargo test has built no {}", program.display()))?;
    let directory = root.join("target/lambda");
    fs::create_dir_all(&directory)?;
    write(&directory.join(format!("{PACKAGE}-tests.zip")), &program)
}

/// Writes the zip of `program`, whole or not at all.
fn write(zip: &Path, program: &[u8]) -> Result<PathBuf> {
    let unfinished = zip.with_extension("unfinished");
    fs::write(&unfinished, pack(program)?)?;
    fs::rename(unfinished, zip)?;
    Ok(zip.to_owned())
}

/// Sees that Rust's own libraries are there for `arch`.
pub(crate) fn standard_library(root: &Path, arch: Arch) -> Result<()> {
    let there = || -> Result<bool> {
        let mut rustc = Command::new("rustc");
        let rustc = rustc.current_dir(root).args(["--print", "target-libdir"]);
        let output = rustc.args(["--target", arch.triple()]).output();
        let output = output.context("cannot start rustc")?;
        let directory = String::from_utf8(output.stdout)?;
        Ok(Path::new(directory.trim()).is_dir())
    };
    let add = format!("rustup target add {}", arch.triple());
    if !there()? && Command::new("rustup").arg("--version").output().is_ok() {
        let mut words = add.split(' ');
        let mut rustup = Command::new(words.next().unwrap_or_default());
        finish(rustup.args(words).current_dir(root))?;
    }
    ensure!(
        there()?,
        "Rust's libraries for {} are missing; run: {add}",
        arch.triple()
    );
    Ok(())
}

/// What a program asks of the system that starts it.
#[derive(Debug)]
pub(crate) struct Needs {
    machine: elf::Machine,
    /// None for a static program.
    libraries: Vec<String>,
    /// The versions of symbols in them.
    versions: Vec<String>,
}

impl Needs {
    pub(crate) fn of(program: &[u8]) -> Result<Self> {
        let header = FileHeader64::<Endianness>::parse(program).context("no ELF of 64 bits")?;
        let endian = header.endian()?;
        let sections = header.sections(endian, program)?;
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        let mut libraries = Vec::new();
        let table = sections.dynamic_table(endian, program)?;
        for entry in table.iter().filter(|entry| entry.tag == elf::DT_NEEDED) {
            libraries.push(text(table.string(entry)?));
        }
        let mut versions = Vec::new();
        if let Some((mut needs, strings)) = sections.gnu_verneed(endian, program)? {
            let strings = sections.strings(endian, program, strings)?;
            while let Some((_, mut of_library)) = needs.next()? {
                while let Some(version) = of_library.next()? {
                    versions.push(text(version.name(endian, strings)?));
                }
            }
        }
        let mut segments = header.program_headers(endian, program)?.iter();
        ensure!(
            libraries.is_empty() || !versions.is_empty(),
            "the program does not say which versions of {} it needs",
            libraries.join(", ")
        );
        ensure!(
            !libraries.is_empty()
                || segments.all(|segment| segment.p_type(endian) != elf::PT_INTERP),
            "the program is not static, and does not say which libraries it needs"
        );
        Ok(Self {
            machine: header.e_machine(endian),
            libraries,
            versions,
        })
    }

    /// Sees that a system has it that is `arch`, and has nothing but a C library of
    /// version `glibc`.
    pub(crate) fn check(&self, arch: Arch, glibc: (u32, u32)) -> Result<()> {
        ensure!(
            self.machine == arch.machine(),
            "the program is for another machine than {}",
            arch.name()
        );
        for library in &self.libraries {
            ensure!(
                OF_GLIBC.iter().any(|name| library.starts_with(name)),
                "the program needs {library}, which is no part of glibc"
            );
        }
        for version in &self.versions {
            let number = version.strip_prefix("GLIBC_").and_then(number);
            ensure!(
                number.is_some_and(|number| number <= glibc),
                "the program needs {version}, and the glibc that it is for is {}.{}",
                glibc.0,
                glibc.1
            );
        }
        Ok(())
    }
}

/// Of `2.34`, or of `2.2.5`, the first two.
fn number(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.split('.').map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// A zip of the program alone: of the same program it is the same, byte by byte.
fn pack(program: &[u8]) -> Result<Vec<u8>> {
    let options = SimpleFileOptions::default()
        .compression_method(CompressionMethod::Deflated)
        .compression_level(Some(9))
        .last_modified_time(DateTime::default())
        .unix_permissions(0o755);
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    zip.start_file("bootstrap", options)?;
    zip.write_all(program)?;
    Ok(zip.finish()?.into_inner())
}

const PACKAGE: &str = "zk-verifier-lambda";

/// The C library of Amazon Linux 2023, which `provided.al2023` is.
const GLIBC: (u32, u32) = (2, 34);

/// What glibc's parts are called, and its loader.
const OF_GLIBC: [&str; 6] = [
    "ld-linux-",
    "libc.",
    "libdl.",
    "libm.",
    "libpthread.",
    "librt.",
];

#[cfg(test)]
mod tests {
    use std::io::Read;

    use zip::ZipArchive;

    use super::*;

    #[test]
    fn a_zip_has_the_one_program_that_lambda_starts() -> Result<()> {
        let zip = pack(b"\x7fELF and so on")?;
        let mut archive = ZipArchive::new(Cursor::new(&zip))?;
        assert_eq!(archive.len(), 1);
        let mut file = archive.by_index(0)?;
        assert_eq!(file.name()?, "bootstrap");
        assert_eq!(file.unix_mode().map(|mode| mode & 0o7777), Some(0o755));
        let mut program = Vec::new();
        file.read_to_end(&mut program)?;
        assert_eq!(program, b"\x7fELF and so on");
        assert_eq!(pack(b"\x7fELF and so on")?, zip, "the same again");
        Ok(())
    }

    #[test]
    fn a_program_says_what_it_needs() -> Result<()> {
        let needs = Needs::of(&fs::read(env::current_exe()?)?)?;
        assert_eq!(needs.machine, Arch::host()?.machine());
        let has = |names: &[String], what: &str| names.iter().any(|name| name.starts_with(what));
        assert!(has(&needs.libraries, "libc."), "{needs:?}");
        assert!(has(&needs.versions, "GLIBC_2."), "{needs:?}");
        assert!(Needs::of(b"#!/bin/sh\n").is_err());
        Ok(())
    }

    #[test]
    fn what_lambda_has_not_is_refused() {
        let needs = |library: &str, version: &str| Needs {
            machine: elf::EM_AARCH64,
            libraries: vec!["ld-linux-aarch64.so.1".to_owned(), library.to_owned()],
            versions: vec!["GLIBC_2.17".to_owned(), version.to_owned()],
        };
        let good = needs("libc.so.6", "GLIBC_2.34");
        assert!(good.check(Arch::Arm64, GLIBC).is_ok());
        for (needs, arch, refused) in [
            (good, Arch::X86_64, "another machine"),
            (needs("libc.so.6", "GLIBC_2.35"), Arch::Arm64, "GLIBC_2.35"),
            (
                needs("libc.so.6", "GLIBC_PRIVATE"),
                Arch::Arm64,
                "GLIBC_PRIVATE",
            ),
            (
                needs("libssl.so.3", "GLIBC_2.34"),
                Arch::Arm64,
                "libssl.so.3",
            ),
        ] {
            let error = needs.check(arch, GLIBC).unwrap_err().to_string();
            assert!(error.contains(refused), "{error}");
        }
    }

    #[test]
    fn versions_are_compared_as_numbers() {
        assert_eq!(number("2.34"), Some((2, 34)));
        assert_eq!(number("2.2.5"), Some((2, 2)));
        assert!(number("2.9") < number("2.34"));
        assert_eq!(number("PRIVATE"), None);
    }
}
