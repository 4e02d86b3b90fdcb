//! The sealed file: AWS keys, locked by an HSM.
//!
//! ```json
//! {
//!   "format": "zk-credentials/1",
//!   "hsm": "zymkey:slot=0",
//!   "hsmKey": "<SHA-256 of the HSM's SubjectPublicKeyInfo, 64 digits>",
//!   "accessKeyId": "AKIA…",
//!   "locked": "<hex of what the HSM made of the keys' JSON>"
//! }
//! ```
//!
//! What stands in clear says whom to ask, and which key to deactivate when the
//! HSM is gone. None of it is believed: the access key id stands in the locked
//! part, too, and another HSM doesn't unlock it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, ensure};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::geteuid;
use serde::{Deserialize, Serialize};
use tempfile::NamedTempFile;
use zk_envelope::KeyId;
use zk_hsm::{Hsm, HsmUri, Options};

use super::keys::{Keys, MAX_LEN};

pub(super) struct Sealed {
    pub(super) hsm: HsmUri,
    pub(super) hsm_key: KeyId,
    pub(super) access_key_id: String,
    locked: Vec<u8>,
}

/// The file's members.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Members {
    format: String,
    hsm: String,
    hsm_key: KeyId,
    access_key_id: String,
    locked: String,
}

impl Sealed {
    /// Has the HSM lock the keys.
    pub(super) fn new(keys: &Keys, uri: &HsmUri) -> anyhow::Result<Self> {
        let hsm = Hsm::open(uri, Options::default())?;
        Ok(Self {
            hsm: uri.clone(),
            hsm_key: KeyId::of(hsm.public_key()),
            access_key_id: keys.access_key_id.clone(),
            locked: hsm.lock(&keys.to_json()?)?,
        })
    }

    /// Reads a file of which nobody else can have changed or read anything.
    pub(super) fn read(path: &Path) -> anyhow::Result<Self> {
        let file = open(path)?;
        let (shown, metadata) = (path.display(), file.metadata()?);
        let mode = metadata.mode() & 0o7777;
        ensure!(
            mode & 0o077 == 0,
            "{shown} has mode {mode:04o}: others than its owner have access to it. Run \
             `chmod 600 {shown}`"
        );
        let me = geteuid();
        ensure!(
            [me.as_raw(), 0].contains(&metadata.uid()),
            "{shown} belongs to user {}, and this runs as {}: seal the keys as the user that is \
             to use them",
            metadata.uid(),
            me.as_raw()
        );
        Self::parse(file).with_context(|| format!("{shown}"))
    }

    /// The same of a file that is only to be known, and not to be used.
    pub(super) fn look_at(path: &Path) -> anyhow::Result<Self> {
        Self::parse(open(path)?).with_context(|| format!("{}", path.display()))
    }

    /// Has the HSM unlock the keys.
    pub(super) fn unlock(&self) -> anyhow::Result<Keys> {
        let Self { hsm: uri, .. } = self;
        let hsm = Hsm::open(uri, Options::default())?;
        let key = KeyId::of(hsm.public_key());
        ensure!(
            key == self.hsm_key,
            "these keys were locked by an HSM with key {}, and {uri} has key {key}: only that one \
             unlocks them. If it is gone, make a new access key in AWS, deactivate {}, and seal \
             the new one",
            self.hsm_key,
            self.access_key_id
        );
        let plain = match hsm.unlock(&self.locked) {
            Err(error @ zk_hsm::Error::UnlockRefused) => {
                return Err(error).with_context(|| {
                    format!(
                        "{uri} does not unlock key {}; if the HSM was erased or the file is \
                         damaged, make a new access key in AWS, deactivate this one, and seal the \
                         new one",
                        self.access_key_id
                    )
                });
            }
            unlocked => unlocked?,
        };
        let keys = Keys::from_json(&plain).context("what the HSM unlocked are no AWS keys")?;
        ensure!(
            keys.access_key_id == self.access_key_id,
            "the file says that it holds key {}, and what the HSM unlocked is {}: somebody has \
             changed the file",
            self.access_key_id,
            keys.access_key_id
        );
        Ok(keys)
    }

    /// Replaces the file as a whole, once what is in the new one was unlocked
    /// again and is `keys`. When this returns it survives a power cut.
    pub(super) fn write(&self, path: &Path, keys: &Keys) -> anyhow::Result<()> {
        let members = Members {
            format: FORMAT.to_owned(),
            hsm: self.hsm.to_string(),
            hsm_key: self.hsm_key,
            access_key_id: self.access_key_id.clone(),
            locked: base16ct::lower::encode_string(&self.locked),
        };
        let mut text = serde_json::to_vec_pretty(&members)?;
        text.push(b'\n');
        let dir = path.parent().unwrap_or(Path::new("."));
        let write = || {
            // of mode 0600 from the start, and not yet under its name
            let mut file = NamedTempFile::new_in(dir)?;
            file.write_all(&text)?;
            file.as_file().sync_all()?;
            Ok::<_, std::io::Error>(file)
        };
        let file = write().with_context(|| format!("cannot write {}", path.display()))?;
        let again = Self::read(file.path())
            .and_then(|sealed| sealed.unlock())
            .context("the keys could not be unlocked again, so nothing was sealed")?;
        ensure!(
            again == *keys,
            "{} unlocked something else than it had locked, so nothing was sealed; report this to \
             its vendor",
            self.hsm
        );
        let name = || {
            file.persist(path).map_err(|error| error.error)?;
            File::open(dir)?.sync_all()
        };
        name().with_context(|| format!("cannot write {}", path.display()))
    }

    fn parse(file: File) -> anyhow::Result<Self> {
        let mut text = Vec::new();
        file.take(MAX_FILE as u64 + 1).read_to_end(&mut text)?;
        ensure!(
            text.len() <= MAX_FILE,
            "longer than {MAX_FILE} bytes, and so no sealed file"
        );
        let members: Members =
            serde_json::from_slice(&text).context("damaged, or no sealed file")?;
        ensure!(
            members.format == FORMAT,
            "a file of another form than {FORMAT}: use the version of zk-setup that wrote it, or \
             seal the keys again"
        );
        let locked = base16ct::lower::decode_vec(&members.locked)
            .ok()
            .context("damaged: `locked` is not lower-case hex")?;
        let id = &members.access_key_id;
        ensure!(
            id.len() <= 128 && id.bytes().all(|byte| byte.is_ascii_alphanumeric()),
            "damaged: `accessKeyId` is none"
        );
        Ok(Self {
            hsm: members.hsm.parse()?,
            hsm_key: members.hsm_key,
            access_key_id: members.access_key_id,
            locked,
        })
    }
}

/// Opens a regular file, and follows no link.
fn open(path: &Path) -> anyhow::Result<File> {
    let shown = path.display();
    // a named pipe would be waited for without NONBLOCK; files know no such thing
    let flags =
        OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::NOFOLLOW;
    let file = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(Errno::LOOP) => {
            anyhow::bail!("{shown} is a link, and none is followed: put the file itself there")
        }
        Err(error) => {
            return Err(std::io::Error::from(error))
                .with_context(|| format!("cannot open {shown}"));
        }
    };
    ensure!(
        file.metadata()?.is_file(),
        "{shown} is not a regular file, and so no sealed one"
    );
    Ok(file)
}

const FORMAT: &str = "zk-credentials/1";

/// In hexadecimal, with what HSMs add.
const MAX_FILE: usize = 6 * MAX_LEN;
