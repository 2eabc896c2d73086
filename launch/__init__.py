"""What it takes to run dogbreed on AWS SageMaker: see the request and its price, try it here, send it."""
