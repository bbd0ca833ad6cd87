"""Sequences → token ids: tokenizers of the Hugging Face API, and a vectorized encoder from residues to the same ids.

``build("esm")``, ``build("kmer", k=6, stride=3)`` … return a tokenizer of transformers' API; ``save_pretrained`` writes
it next to a model. ``load`` reads any of them back, and any other tokenizer of the hub. ``residue_encoder(tokenizer)``
gives the same ids from a uint8 array of letters, without Python strings, and the residues of each token.

| kind | tokens | class | ``AutoTokenizer`` without ds4sci |
|---|---|---|---|
| ``esm`` | one per residue, the 33 of ESM-2 | transformers' own ``EsmTokenizer`` | yes |
| ``nucleotide`` | one per base: A C G T N | ``tokenizer.json`` | yes |
| ``byte`` | one per byte, 256 | ``tokenizer.json`` | yes |
| ``kmer``, stride = k | k bases, single bases where no k-mer fits | ``tokenizer.json`` | yes |
| ``kmer``, stride < k | overlapping windows of k | ``OverlappingKmerTokenizer`` | with ``trust_remote_code`` |
| ``codon`` | three bases of a reading frame, 64 | ``tokenizer.json`` | yes |
"""

from ds4sci.data.tokenizers.encoder import ResidueEncoder, residue_encoder
from ds4sci.data.tokenizers.kinds import KINDS, build, codon_amino_acids, load

__all__ = ["KINDS", "ResidueEncoder", "build", "codon_amino_acids", "load", "residue_encoder"]
