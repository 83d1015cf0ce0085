//! Zip archives as torch.save makes them, for tests and for the fuzz targets.

/// A zip archive of entries stored as they are. `method`: what it says of their compression.
pub fn zip_file(entries: &[(&str, &[u8])], method: u16) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for (name, bytes) in entries {
        let at = file.len() as u32;
        let size = (bytes.len() as u32).to_le_bytes();
        let lengths = [name.len() as u16, 0].map(u16::to_le_bytes).concat();
        let mut crc = flate2::Crc::new();
        crc.update(bytes);
        let sums = [&crc.sum().to_le_bytes()[..], &size, &size].concat();
        let common = [&[0, 0, 0, 0][..], &method.to_le_bytes(), &[0; 4], &sums, &lengths].concat();
        file.extend([&b"PK\x03\x04"[..], &common, name.as_bytes(), bytes].concat());
        let rest = [&[0; 10][..], &at.to_le_bytes(), name.as_bytes()].concat();
        directory.extend([&b"PK\x01\x02\x14\x00"[..], &common, &rest].concat());
    }
    let [at, size] = [file.len() as u32, directory.len() as u32].map(u32::to_le_bytes);
    let count = (entries.len() as u16).to_le_bytes();
    file.extend(directory);
    file.extend([&b"PK\x05\x06\0\0\0\0"[..], &count, &count, &size, &at, &[0, 0]].concat());
    file
}
