"""Prints the literals in the tests of src/torch.rs: draws of PyTorch's CPU generator."""
import torch


def ends(values):
    return [values[0], values[1], values[-2], values[-1]]


def main():
    generator = torch.Generator().manual_seed(0)
    print("const UNIFORM_0: [f32; 4] =", torch.rand(4, generator=generator).tolist(), ";")
    generator = torch.Generator().manual_seed(1234)
    drawn = torch.empty(1000).uniform_(-0.25, 0.25, generator=generator).tolist()
    print("const UNIFORM_1234: [f32; 4] =", ends(drawn), ";")
    generator = torch.Generator().manual_seed(0)
    print("const NORMAL_0: [(usize, [f64; 5]); 7] = [")
    for n in [5, 3, 16, 2, 17, 768, 1001]:
        drawn = torch.randn(n, generator=generator)
        print(f"    ({n}, {ends(drawn.tolist()) + [drawn.double().sum().item()]}),")
    print("];")


main()
