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
