//! The packages that `cargo xtask package` has made, and programs that have to succeed.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// All of them.
pub(crate) const PACKAGES: [&str; 3] = ["zk-agent", "zk-gateway", "zk-tools"];

/// What to say where a variable is missing.
pub(crate) const BY_XTASK: &str = "run this by `cargo xtask test packages`, as root";

/// This machine's architecture, as Debian calls it.
#[cfg(target_arch = "x86_64")]
pub(crate) const HOST: &str = "amd64";
#[cfg(not(target_arch = "x86_64"))]
pub(crate) const HOST: &str = "arm64";

/// The package for an architecture, as Debian calls it.
pub(crate) fn package(name: &str, arch: &str) -> PathBuf {
    let directory = PathBuf::from(env::var_os("ZK_TEST_PACKAGES").expect(BY_XTASK));
    let version = env!("CARGO_PKG_VERSION");
    directory.join(format!("{name}_{version}-1_{arch}.deb"))
}

/// Makes the package for this machine with a higher version, and with `settings`
/// changed, in a directory.
pub(crate) fn newer(name: &str, settings: &str, directory: &Path) -> PathBuf {
    let (tree, made) = (directory.join(name), directory.join("newer.deb"));
    let mut unpack = Command::new("dpkg-deb");
    finish(unpack.arg("-R").arg(package(name, HOST)).arg(&tree));
    let control = tree.join("DEBIAN/control");
    let text = fs::read_to_string(&control).unwrap();
    let version = env!("CARGO_PKG_VERSION");
    let text = text.replace(&format!("Version: {version}"), "Version: 99");
    fs::write(control, text).unwrap();
    fs::write(tree.join(settings), "# other words\n").unwrap();
    let mut build = Command::new("dpkg-deb");
    build.args(["--root-owner-group", "-Zgzip", "-z1", "-b"]);
    finish(build.arg(&tree).arg(&made));
    made
}

/// Runs it to its end.
///
/// # Panics
/// With what it said, if it does not succeed.
pub(crate) fn finish(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    let (said, told) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{command:?}\n{said}\n{told}");
    output
}

/// What a program said.
pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
