use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::{env, io};

use anyhow::{Context, bail, ensure};
use zeroize::Zeroizing;
use zk_provision::Passphrase;

use crate::arguments::PassphraseSource;

/// Gets the passphrase from a file, the environment, or the person at the
/// terminal, who types it twice if it is a `new` one.
pub(crate) fn get(source: &PassphraseSource, new: bool) -> anyhow::Result<Passphrase> {
    let text = if let Some(path) = &source.passphrase_file {
        read(path)?
    } else if let Some(text) = env::var_os(VARIABLE) {
        tracing::warn!(
            "the passphrase comes from {VARIABLE}, which all your processes can read: \
             --passphrase-file keeps it better"
        );
        let text = text.into_string().map(Zeroizing::new);
        text.map_err(|_| anyhow::anyhow!("{VARIABLE} is not UTF-8"))?
    } else {
        ask(new)?
    };
    Ok(Passphrase::new(text)?)
}

fn read(path: &Path) -> anyhow::Result<Zeroizing<String>> {
    let shown = path.display();
    let open = || -> io::Result<(u32, Zeroizing<String>)> {
        let file = File::open(path)?;
        let mode = file.metadata()?.permissions().mode() & 0o777;
        let mut text = Zeroizing::new(String::with_capacity(MAX_LEN));
        file.take(MAX_LEN as u64).read_to_string(&mut text)?;
        Ok((mode, text))
    };
    let (mode, text) = open().with_context(|| format!("passphrase file {shown}"))?;
    ensure!(
        mode & 0o077 == 0,
        "{shown}: mode {mode:03o} lets others read the passphrase; run: chmod 600 {shown}"
    );
    let line = text.strip_suffix('\n').unwrap_or(&text);
    let line = line.strip_suffix('\r').unwrap_or(line);
    let single = text.len() < MAX_LEN && !line.contains(['\n', '\r']);
    ensure!(
        single,
        "{shown}: a passphrase is one line of fewer than {MAX_LEN} bytes"
    );
    Ok(Zeroizing::new(line.to_owned()))
}

fn ask(new: bool) -> anyhow::Result<Zeroizing<String>> {
    let prompt = |prompt| match rpassword::prompt_password(prompt) {
        Ok(text) => Ok(Zeroizing::new(text)),
        Err(error) => Err(error).context(
            "there is no terminal to ask for the passphrase on: give it with --passphrase-file",
        ),
    };
    let text = prompt("Passphrase of the certificate authorities: ")?;
    if new && *prompt("The same again: ")? != *text {
        bail!("the two passphrases differ");
    }
    Ok(text)
}

const VARIABLE: &str = "ZK_SETUP_PASSPHRASE";

/// Longer than anything that a person keeps as a passphrase.
const MAX_LEN: usize = 1024;
