"""Object detection and instance segmentation: Faster and Mask R-CNN on any backbone of the zoo."""
