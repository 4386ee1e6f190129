"""Pretrained models from elsewhere, of which only the parts that are probed are fetched."""
