"""Write prepared data as WebDataset tars."""
