//! Schedules: their names, their order, and the splits of split sums.

use super::*;

fn matrix(rows: usize, cols: usize, depth: usize) -> Product {
    Product { split_k: true, ..Product::new("test", [1, rows, cols, depth], [Loader::Dense; 2]) }
}

#[test]
fn an_index_is_its_schedule() {
    let tiled = (0..TILES.len()).flat_map(|i| [Schedule::Tiled(i), Schedule::Winograd(i)]);
    let mut names: Vec<String> = Vec::new();
    for schedule in tiled.chain([Schedule::Naive]) {
        let Variant { name, index, .. } = schedule.variant();
        assert_eq!(Schedule::of(index), schedule);
        assert!(!names.contains(&name), "two schedules are called {name}");
        names.push(name);
    }
}

#[test]
fn the_first_schedule_fits_the_adapter_and_the_size() {
    let first = |software: bool, broadcasts: bool, rows: usize, cols: usize| {
        let variants = variants(
            &matrix(rows, cols, 64),
            &Traits { software, broadcasts, halves: false, keeps_halves: false, matrices: None },
        );
        assert_eq!(variants.iter().filter(|variant| variant.index == 0).count(), 1, "{variants:?}");
        Schedule::of(variants[0].index)
    };
    assert_eq!(first(true, true, 4096, 64), Schedule::Tiled(5));
    assert_eq!(first(true, true, 4096, 32), Schedule::Tiled(6));
    assert_eq!(first(true, false, 4096, 64), Schedule::Tiled(3));
    assert_eq!(first(true, true, 65_536, 3), Schedule::Naive);
    assert_eq!(first(false, true, 65_536, 128), Schedule::Tiled(0));
    assert_eq!(first(false, true, 65_536, 64), Schedule::Tiled(1));
    assert_eq!(first(false, true, 128, 256), Schedule::Tiled(3));
}

#[test]
fn parts_are_the_whole_sum_and_neither_long_nor_large() {
    let schedules = (0..TILES.len()).map(Schedule::Tiled).chain([Schedule::Naive]);
    for schedule in schedules {
        for (rows, cols, depth) in
            [(1, 1, 1), (27, 64, 131_072), (4608, 512, 8192), (9, 4, 5000), (576, 64, 2048)]
        {
            let product = matrix(rows, cols, depth);
            let [splits, split_depth] = split(&product, schedule);
            let at = format!("{schedule:?}, {rows} x {cols} x {depth}: {splits} splits of {split_depth}");
            assert!(splits * split_depth >= depth && (splits - 1) * split_depth < depth, "{at}");
            assert!(split_depth <= LONGEST_SUM && split_depth.is_multiple_of(16), "{at}");
            let large = splits > depth.div_ceil(LONGEST_SUM) && splits * rows * cols > 32 << 20;
            assert!(
                !large && splits * rows * cols <= scratch(&product).first().map_or(rows * cols, |&s| s),
                "{at}"
            );
        }
    }
    assert_eq!(split(&Product { split_k: false, ..matrix(9, 4, 5000) }, Schedule::Naive)[0], 1);
}

#[test]
fn matrices_are_for_tensors_of_16_bits_in_quads() {
    let adapter =
        Traits { software: false, broadcasts: true, halves: true, keeps_halves: true, matrices: Some(16) };
    let count = |product: &Product, adapter: Traits| {
        variants(product, &adapter).iter().filter(|of| of.rounds).count()
    };
    assert_eq!(count(&matrix(64, 64, 64), adapter), 2);
    assert_eq!(count(&matrix(64, 64, 64), Traits { matrices: Some(8), ..adapter }), 1);
    assert_eq!(count(&matrix(64, 64, 64), Traits { matrices: None, ..adapter }), 0);
    assert_eq!(count(&matrix(64, 64, 64), Traits { halves: false, ..adapter }), 0);
    assert_eq!(count(&matrix(64, 63, 64), adapter), 0);
    assert!(!variants(&matrix(64, 64, 64), &adapter)[0].rounds, "only by tuning");
}
