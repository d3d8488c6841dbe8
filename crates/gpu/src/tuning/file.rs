//! The file in the user's cache folder: one for each device and version of the kernels.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Tuned;
use crate::DeviceProperties;
use crate::kernel_cache::{Key, folder_of_user};

/// Of the file's contents.
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Contents {
    version: u32,
    products: Vec<Tuned>,
}

/// Where a device's file is. Its name changes with the kernel: what was the fastest need not stay so.
pub(super) fn path(properties: &DeviceProperties) -> Option<PathBuf> {
    let kernel = marlin_kernels::text("gemm")?;
    let units = properties.compute_units.to_string();
    let parts = [properties.kind, &properties.name, &properties.architecture, &units, &kernel];
    Some(folder_of_user("tuning")?.join(Key::of(&parts).file_name("json")))
}

/// The file's products; none if it is not there, damaged, or of another version: it is only a cache.
pub(super) fn read(path: &Path) -> Vec<Tuned> {
    let contents = std::fs::read(path).ok();
    let contents: Option<Contents> = contents.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    contents.filter(|c| c.version == VERSION).map(|c| c.products).unwrap_or_default()
}

/// Writes under another name and renames, so that others see all of it or nothing.
pub(super) fn write(path: &Path, products: &[Tuned]) -> io::Result<()> {
    let contents = Contents { version: VERSION, products: products.to_vec() };
    let text = serde_json::to_vec_pretty(&contents)?;
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let unfinished = path.with_extension(format!("{}.part", std::process::id()));
    std::fs::write(&unfinished, text)
        .and_then(|()| std::fs::rename(&unfinished, path))
        .inspect_err(|_| drop(std::fs::remove_file(&unfinished)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::linear::GemmShape;
    use crate::tuning::Product;

    fn tuned(rows: usize) -> Tuned {
        let product = Product {
            code: 2,
            scale: 1,
            min: 0,
            group: 128,
            rows,
            columns: 256,
            gated: false,
            tokens: 8,
        };
        let shape = r#"{"tiles":1,"row_blocks":1,"row_groups":1,"k_groups":8,"depth":2,"staged":false,
            "splits":1,"wide":true,"stages":2,"prescaled":false}"#;
        let shape: GemmShape = serde_json::from_str(shape).unwrap();
        Tuned { product, shape, microseconds: 1.5, default_microseconds: 2.0 }
    }

    #[test]
    fn what_is_written_is_read_and_what_is_no_such_file_is_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("below").join("device.json");
        assert_eq!(read(&path), []);
        let products = [tuned(16), tuned(32)];
        write(&path, &products).unwrap();
        assert_eq!(read(&path), products);
        // Nothing is left beside it.
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace("\"version\": 1", "\"version\": 2")).unwrap();
        assert_eq!(read(&path), []);
        std::fs::write(&path, &text[..text.len() / 2]).unwrap();
        assert_eq!(read(&path), []);
    }
}
