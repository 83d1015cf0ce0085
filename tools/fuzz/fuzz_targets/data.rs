//! Any bytes as a file of MNIST, plain or compressed, or of CIFAR-10.
#![no_main]

use std::io::Write;

use denoir::data::{Options, Resize, Split, open};
use denoir_fuzz::{put, two};
use flate2::Compression;
use flate2::write::GzEncoder;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let resize = Resize::Bilinear;
    let options = Options { image_size: 8, channels: None, crop: None, resize, seed: 0, split: Split::Train };
    let (images, labels) = two(bytes);
    let mut zipped = GzEncoder::new(Vec::new(), Compression::fast());
    zipped.write_all(images).expect("memory");
    let zipped = zipped.finish().expect("memory");
    put("mnist/train-images-idx3-ubyte", images);
    put("mnist/train-labels-idx1-ubyte", labels);
    put("zipped/train-images-idx3-ubyte.gz", &zipped);
    put("raw/train-images-idx3-ubyte.gz", bytes);
    for batch in 1..=5 {
        put(&format!("cifar/data_batch_{batch}.bin"), images);
    }
    put("cifar/batches.meta.txt", labels);
    for spec in ["mnist:mnist", "mnist:zipped", "mnist:raw", "cifar10:cifar"] {
        let (kind, folder) = spec.split_once(':').expect("a colon");
        let spec = format!("{kind}:{}", denoir_fuzz::scratch().join(folder).display());
        if let Ok(data) = open(&spec, &options) {
            let mut picture = vec![0.0; data.shape().iter().product()];
            data.read(0, &mut picture).expect("it is in memory");
        }
    }
});
