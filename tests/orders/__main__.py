from orders import main

main()
