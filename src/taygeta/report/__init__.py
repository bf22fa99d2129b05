"""What a person sees: views of results, drawn as text, HTML, JSON and data frames."""
