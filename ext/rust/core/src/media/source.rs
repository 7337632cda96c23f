//! From what a row says of a picture to its bytes: a path, a data URI. Nothing is fetched.
use crate::error::RowError;
use crate::types::Json;
use std::fs;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

/// The largest file that is read.
const MOST_BYTES: u64 = 256 << 20;

/// Folders whose files may be read.
#[derive(Debug, Clone, Default)]
pub struct Roots {
    /// Absolute, without links in them.
    folders: Vec<PathBuf>,
}

/// A picture's bytes, and where they lie if not in the row.
#[derive(Debug)]
pub(crate) struct MediaFile {
    /// The path as the row has it.
    pub(crate) reference: Option<Box<str>>,
    /// The folder from where it counts, if it is relative.
    pub(crate) folder: Option<Box<str>>,
    /// All of it.
    pub(crate) bytes: Vec<u8>,
}

impl Roots {
    /// Folders that exist.
    #[must_use]
    pub fn new(folders: &[String]) -> Self {
        Self { folders: folders.iter().filter_map(|folder| fs::canonicalize(folder).ok()).collect() }
    }

    /// Read a picture. A relative path counts from `folder`, that of the data file, whose files may always be read.
    ///
    /// # Errors
    /// [`RowError`]: `media_missing`, `media_refused` for what may not be read, `media_broken` for what cannot be.
    pub(crate) fn open(&self, reference: &Json, folder: Option<&str>) -> Result<MediaFile, RowError> {
        let text = match reference {
            Json::String(text) => &**text,
            Json::Object(_) => {
                if let Some(Json::String(data)) = reference.member("data") {
                    let bytes = decode_base64(data.as_bytes());
                    let bytes = bytes.ok_or_else(|| RowError::new("media_broken", "its data is not valid base64"))?;
                    return Ok(MediaFile { reference: None, folder: None, bytes });
                }
                let names = ["bytes", "url", "path", "image"];
                let mut inner = names.iter().filter_map(|name| reference.member(name));
                let inner = inner.find(|inner| matches!(inner, Json::String(_)));
                return inner.map_or_else(|| Err(no_reference()), |inner| self.open(inner, folder));
            }
            _ => return Err(no_reference()),
        };
        if let Some(data) = text.strip_prefix("data:") {
            return from_data_uri(data);
        }
        let path = text.strip_prefix("file://").unwrap_or(text);
        if let Some((scheme, _)) = path.split_once("://") {
            let message = format!("{scheme}: addresses are not fetched; download the picture and give its path");
            return Err(RowError::new("media_refused", message));
        }
        let (folder, bytes) = self.read(Path::new(path), folder)?;
        Ok(MediaFile { reference: Some(path.into()), folder, bytes })
    }

    /// A file's bytes, and the folder from where its path counts.
    fn read(&self, path: &Path, folder: Option<&str>) -> Result<(Option<Box<str>>, Vec<u8>), RowError> {
        let shown = path.display();
        let own = folder.and_then(|folder| fs::canonicalize(folder).ok());
        let (base, found) = if path.is_absolute() {
            (None, fs::canonicalize(path))
        } else {
            // the data file's folder first, then each of --media-root
            let mut bases = own.iter().chain(&self.folders);
            let nowhere = || Err(std::io::Error::from(ErrorKind::NotFound));
            let found = bases.find_map(|base| fs::canonicalize(base.join(path)).ok().map(|found| (base, found)));
            found.map_or_else(|| (None, nowhere()), |(base, found)| (Some(base.clone()), Ok(found)))
        };
        let missing = |why: std::io::Error| match why.kind() {
            ErrorKind::NotFound | ErrorKind::NotADirectory => {
                RowError::new("media_missing", format!("{shown}: no such file; mend the path, or pass --media-root"))
            }
            _ => RowError::new("media_missing", format!("{shown}: cannot be read ({})", why.kind())),
        };
        let found = found.map_err(missing)?;
        if !own.iter().chain(&self.folders).any(|root| found.starts_with(root)) {
            let message =
                format!("{shown} is not below the data file's folder; pass --media-root DIR to allow that folder");
            return Err(RowError::new("media_refused", message));
        }
        // looked at first: to open a pipe is to wait for somebody who writes to it
        let about = fs::metadata(&found).map_err(missing)?;
        if !about.is_file() {
            return Err(RowError::new("media_missing", format!("{shown}: not a file")));
        }
        if about.len() > MOST_BYTES {
            let message = format!("{shown}: has {} bytes, the most is {MOST_BYTES}; shrink it first", about.len());
            return Err(RowError::new("media_too_large", message));
        }
        let file = fs::File::open(&found).map_err(missing)?;
        let mut bytes = Vec::with_capacity(about.len() as usize);
        file.take(MOST_BYTES).read_to_end(&mut bytes).map_err(missing)?;
        Ok((base.map(|base| base.to_string_lossy().into()), bytes))
    }
}

fn no_reference() -> RowError {
    RowError::new("media", "a picture is given as a path, a data URI, or an object with url or path".to_owned())
}

/// `image/png;base64,...`
fn from_data_uri(data: &str) -> Result<MediaFile, RowError> {
    let broken =
        |why: &str| RowError::new("media_broken", format!("the data URI {why}; it is data:image/png;base64,..."));
    let (head, body) = data.split_once(',').ok_or_else(|| broken("has no data"))?;
    if !head.ends_with(";base64") {
        return Err(broken("is not in base64"));
    }
    let bytes = decode_base64(body.as_bytes()).ok_or_else(|| broken("is not valid base64"))?;
    Ok(MediaFile { reference: None, folder: None, bytes })
}

/// Standard base64, with or without padding and line breaks; none if it is something else.
fn decode_base64(text: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len() / 4 * 3 + 3);
    let (mut bits, mut held, mut padding) = (0_u32, 0_u32, 0);
    for &byte in text {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            b'=' => {
                padding += 1;
                continue;
            }
            b'\r' | b'\n' => continue,
            _ => return None,
        };
        if padding > 0 {
            return None;
        }
        bits = (bits << 6) | u32::from(value);
        held += 6;
        if held >= 8 {
            held -= 8;
            out.push((bits >> held) as u8);
            bits &= (1 << held) - 1;
        }
    }
    (held < 6 && padding < 3).then_some(out)
}

#[cfg(test)]
mod tests {
    use super::decode_base64;

    #[test]
    fn base64_round_trips_known_values() {
        for (text, bytes) in [("", ""), ("Zg==", "f"), ("Zm8=", "fo"), ("Zm9v", "foo"), ("Zm9vYmE", "fooba")] {
            assert_eq!(decode_base64(text.as_bytes()).as_deref(), Some(bytes.as_bytes()));
        }
        for text in ["Z", "Zg=a", "Zm9*", "Zg==="] {
            assert_eq!(decode_base64(text.as_bytes()), None, "{text}");
        }
    }
}
