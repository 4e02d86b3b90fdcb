use std::fmt;

use zeroize::Zeroizing;

use crate::Error;

/// The passphrase that encrypts a key. Zeroized when dropped, never shown.
pub struct Passphrase(Zeroizing<String>);

impl Passphrase {
    /// The least number of characters that is accepted.
    pub const MIN_CHARS: usize = 8;

    /// Takes the passphrase as it is; strip the line's end first if it came
    /// from a file.
    ///
    /// # Errors
    /// [`Error::PassphraseTooShort`] under [`Passphrase::MIN_CHARS`] characters.
    pub fn new(text: impl Into<Zeroizing<String>>) -> Result<Self, Error> {
        let text = text.into();
        if text.chars().count() < Self::MIN_CHARS {
            return Err(Error::PassphraseTooShort {
                least: Self::MIN_CHARS,
            });
        }
        Ok(Self(text))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Passphrase(..)")
    }
}
