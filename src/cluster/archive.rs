//! Where records go when they are put away: one JSON line each.

use crate::api::CarbonReservation;
use crate::clock;
use std::fs::OpenOptions;
use std::io::{Error, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where records are handed on to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Archive {
    /// Standard output, for whatever collects a container's.
    Stdout,
    /// A file for each day in this folder, `carbonreservations-2026-11-28.jsonl`.
    Folder(PathBuf),
    #[cfg(test)]
    Nowhere,
}

/// A volume that hangs must not keep the leader from its work for ever.
const DEADLINE: Duration = Duration::from_secs(10);

impl Archive {
    /// Hands records on; once this returns they are where they are to go.
    pub(super) async fn write(&self, records: &[&CarbonReservation]) -> Result<(), Error> {
        let text = lines(records)?;
        match self {
            Self::Stdout => {
                let mut out = std::io::stdout().lock();
                out.write_all(text.as_bytes())?;
                out.flush()
            }
            Self::Folder(folder) => {
                let day = clock::now().strftime("%Y-%m-%d").to_string();
                let path = folder.join(format!("carbonreservations-{day}.jsonl"));
                let written = tokio::task::spawn_blocking(move || append(&path, &text));
                match tokio::time::timeout(DEADLINE, written).await {
                    Ok(Ok(done)) => done,
                    Ok(Err(_)) => Err(Error::other("the write was given up")),
                    Err(_) => Err(Error::new(ErrorKind::TimedOut, "the volume hangs")),
                }
            }
            #[cfg(test)]
            Self::Nowhere => Ok(()),
        }
    }
}

/// A JSON line for each record, as `kubectl get -o json` writes it but on one line.
fn lines(records: &[&CarbonReservation]) -> Result<String, Error> {
    let mut text = String::new();
    for record in records {
        let mut record = (*record).clone();
        record.metadata.managed_fields = None;
        text += &serde_json::to_string(&record)?;
        text.push('\n');
    }
    Ok(text)
}

/// Appends, and waits until it is on the disk. A line that a crash cut in half is ended first.
fn append(path: &Path, text: &str) -> Result<(), Error> {
    let named = |error: Error| Error::new(error.kind(), format!("{}: {error}", path.display()));
    let mut file = OpenOptions::new();
    let mut file = file
        .create(true)
        .read(true)
        .append(true)
        .open(path)
        .map_err(named)?;
    let mut last = [b'\n'];
    if file.seek(SeekFrom::End(-1)).is_ok() {
        file.read_exact(&mut last).map_err(named)?;
    }
    if last != [b'\n'] {
        file.write_all(b"\n").map_err(named)?;
    }
    file.write_all(text.as_bytes()).map_err(named)?;
    file.sync_all().map_err(named)
}

#[cfg(test)]
mod tests {
    use super::super::tracking::tests::reservation;
    use super::*;

    #[tokio::test]
    async fn records_are_lines_that_can_be_read_again_and_a_half_one_spoils_no_other() {
        let folder = std::env::temp_dir().join(format!("jouleward-archive-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let archive = Archive::Folder(folder.clone());
        let (one, two) = (reservation(1), reservation(2));
        archive.write(&[&one, &two]).await.unwrap();
        let path = std::fs::read_dir(&folder)
            .unwrap()
            .next()
            .unwrap()
            .unwrap()
            .path();
        let mut text = std::fs::read_to_string(&path).unwrap();
        text += "{\"half";
        std::fs::write(&path, &text).unwrap();
        archive.write(&[&two]).await.unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let read = |line: &str| serde_json::from_str::<CarbonReservation>(line).ok();
        let reserved = text
            .lines()
            .map(|line| Some(read(line)?.spec.reserved_milligrams));
        assert_eq!(
            reserved.collect::<Vec<_>>(),
            [Some(1), Some(2), None, Some(2)]
        );
        std::fs::remove_dir_all(&folder).unwrap();
        let error = archive.write(&[&one]).await.unwrap_err();
        assert!(error.to_string().contains("carbonreservations-"), "{error}");
    }
}
