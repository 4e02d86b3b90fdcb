//! `zk-ctl hsm`: the device's key, used by hand.

use std::path::Path;

use p256::PublicKey;
use serde_json::json;
use zeroize::Zeroizing;
use zk_envelope::KeyId;
use zk_hsm::{BackendKind, Hsm, MAX_LOCK, Signature, create_soft_key};

use crate::arguments::{Common, HsmCommand, Transform};
use crate::outcome::{Outcome, Output, table};
use crate::{Error, files};

pub(crate) fn run(common: &Common, command: &HsmCommand) -> Result<Outcome, Error> {
    match command {
        HsmCommand::Info => info(&common.key()?),
        HsmCommand::PublicKey => public_key(&common.key()?),
        HsmCommand::Csr { name, out } => {
            let name = match name {
                Some(name) => name.clone(),
                None => common.read()?.device.id,
            };
            csr(&common.key()?, name.as_str(), out.as_deref())
        }
        HsmCommand::Sign(files) => sign(&common.key()?, files),
        HsmCommand::Lock(files) => lock(&common.key()?, files),
        HsmCommand::Unlock(files) => unlock(&common.key()?, files),
        HsmCommand::Random { bytes, raw } => random(&common.key()?, *bytes as usize, *raw),
        HsmCommand::Create => create(common),
    }
}

fn info(hsm: &Hsm) -> Result<Outcome, Error> {
    let info = hsm.info().map_err(|error| Error::hsm(hsm.uri(), error))?;
    let key = KeyId::of(hsm.public_key());
    let or_none = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    let rows = [
        ["uri", &hsm.uri().to_string()],
        ["backend", &info.backend.to_string()],
        ["model", &or_none(&info.model)],
        ["serial", &or_none(&info.serial)],
        ["firmware", &or_none(&info.firmware)],
        ["key", &key.to_string()],
        [
            "protected",
            if info.development {
                "no: for development"
            } else {
                "by hardware"
            },
        ],
    ];
    Ok(Outcome::done(
        table(&rows.map(|row| row.map(str::to_owned))),
        json!({
            "uri": hsm.uri().to_string(),
            "backend": info.backend.to_string(),
            "model": info.model,
            "serial": info.serial,
            "firmware": info.firmware,
            "development": info.development,
            "key": key.to_string(),
        }),
    ))
}

fn public_key(hsm: &Hsm) -> Result<Outcome, Error> {
    let pem = PublicKey::from(*hsm.public_key()).to_string();
    let key = KeyId::of(hsm.public_key()).to_string();
    Ok(Outcome::done(
        pem.trim_end().to_owned(),
        json!({ "publicKey": pem, "key": key }),
    ))
}

fn csr(hsm: &Hsm, name: &str, out: Option<&Path>) -> Result<Outcome, Error> {
    let pem = hsm
        .csr(name)
        .map_err(|error| Error::hsm(hsm.uri(), error))?;
    let json = json!({ "device": name, "csr": pem, "out": out });
    let Some(out) = out else {
        return Ok(Outcome::done(pem.trim_end().to_owned(), json));
    };
    files::write_new(out, pem.as_bytes())?;
    let out = out.display();
    Ok(Outcome::done(format!("created  {out}"), json).hint(format!(
        "Next, where the authorities are: zk-setup device add {name} --csr {out}"
    )))
}

fn sign(hsm: &Hsm, transform: &Transform) -> Result<Outcome, Error> {
    let input = files::read(
        transform.file.as_deref(),
        MAX_SIGNED,
        "can be signed at once; sign a digest of it instead",
    )?;
    let signature = hsm
        .sign(&preimage(&input))
        .map_err(|error| Error::hsm(hsm.uri(), error))?;
    let der = signature.to_der();
    let out = transform.out.as_deref();
    let key = KeyId::of(hsm.public_key()).to_string();
    let json = json!({
        "signature": base16ct::lower::encode_string(der.as_bytes()),
        "rs": base16ct::lower::encode_string(&signature_bytes(&signature)),
        "label": LABEL,
        "key": key,
        "out": out,
    });
    let Some(out) = out else {
        let text = base16ct::lower::encode_string(der.as_bytes());
        return Ok(Outcome::done(text, json)
            .hint("openssl verifies it from a file: see --out, and zk-ctl hsm sign --help."));
    };
    files::write_new(out, der.as_bytes())?;
    let file = transform.file.as_deref().unwrap_or(Path::new("-"));
    Ok(Outcome::done(format!("created  {}", out.display()), json)
        .hint("To verify, with the key from zk-ctl hsm public-key in KEY.pem:")
        .hint(format!(
            "  (printf '{LABEL}\\0'; cat {}) | openssl dgst -sha256 -verify KEY.pem -signature {}",
            quoted(file),
            quoted(out)
        )))
}

/// A path as a shell takes it.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
    if text.chars().all(plain) {
        text
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

/// What is signed: it begins with a label, so that it is no bytes of a record
/// (`ZKE1`), of TLS (spaces, or a handshake's type) or of a certificate request
/// (DER). To be able to sign files is not to be able to publish.
pub(crate) fn preimage(bytes: &[u8]) -> Vec<u8> {
    [LABEL.as_bytes(), &[0], bytes].concat()
}

fn signature_bytes(signature: &Signature) -> [u8; 64] {
    signature.to_bytes().into()
}

fn lock(hsm: &Hsm, transform: &Transform) -> Result<Outcome, Error> {
    if transform.out.is_none() {
        files::not_to_terminal()?;
    }
    let input = files::read(
        transform.file.as_deref(),
        MAX_LOCK,
        "can be locked at once; lock a key instead, and encrypt with that",
    )?;
    let locked = hsm
        .lock(&input)
        .map_err(|error| Error::hsm(hsm.uri(), error))?;
    result(Zeroizing::new(locked), transform.out.as_deref())
}

fn unlock(hsm: &Hsm, transform: &Transform) -> Result<Outcome, Error> {
    let input = files::read(
        transform.file.as_deref(),
        MAX_LOCKED,
        "a locked file can have; it is none",
    )?;
    let plain = hsm
        .unlock(&input)
        .map_err(|error| Error::hsm(hsm.uri(), error))?;
    result(plain, transform.out.as_deref())
}

/// Bytes into a file, or to standard output.
fn result(bytes: Zeroizing<Vec<u8>>, out: Option<&Path>) -> Result<Outcome, Error> {
    let len = bytes.len();
    if let Some(out) = out {
        files::write_new(out, &bytes)?;
        return Ok(Outcome::done(
            format!("created  {}, {len} bytes", out.display()),
            json!({ "out": out, "bytes": len }),
        ));
    }
    Ok(Outcome {
        output: Output::Bytes(bytes),
        ..Outcome::done(String::new(), json!({ "bytes": len }))
    })
}

fn random(hsm: &Hsm, len: usize, raw: bool) -> Result<Outcome, Error> {
    if raw {
        files::not_to_terminal()?;
    }
    let bytes = hsm
        .random(len)
        .map_err(|error| Error::hsm(hsm.uri(), error))?;
    if raw {
        return result(bytes, None);
    }
    let text = base16ct::lower::encode_string(&bytes);
    let json = json!({ "data": text, "bytes": len });
    Ok(Outcome::done(text, json))
}

fn create(common: &Common) -> Result<Outcome, Error> {
    let uri = common.key_uri()?;
    let text = uri.to_string();
    let path = match text.strip_prefix("soft:") {
        Some(path) if uri.backend() == BackendKind::Soft => Path::new(path),
        _ => return Err(Error::NotSoft { uri: text }),
    };
    create_soft_key(path).map_err(|error| Error::hsm(&uri, error))?;
    Ok(Outcome::done(
        format!("created  {}", path.display()),
        json!({ "uri": text }),
    )
    .hint("Whoever reads this file has the key: it is for development. Next: zk-ctl hsm csr"))
}

/// What every signature of `zk-ctl` begins with, before a zero byte.
const LABEL: &str = "zk-ctl/1 signature";

/// All of it is in memory while it is signed.
const MAX_SIGNED: usize = 64 << 20;

/// A backend adds at most 4 KiB.
const MAX_LOCKED: usize = MAX_LOCK + 4096;
