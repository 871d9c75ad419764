"""Mask R-CNN: images, boxes, masks and networks. Imports torch, never ray."""
